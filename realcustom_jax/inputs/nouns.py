"""Common nouns of things that people photograph: the vocabulary of `matching.choose_words`."""

_NOUNS = """
airplane alligator alpaca ant antelope apple armchair astronaut avocado baby backpack badger bag ball
balloon banana barn basket bat bathtub beaver bear bed bee beetle bell bench bicycle bird bison blender boat
book boot bottle bouquet bowl boy bracelet bread bridge broccoli broom bucket buffalo bulldog bus butterfly
cabin cactus cake camel camera candle candy canoe car carrot castle cat caterpillar chair cheetah cherry
chicken chimpanzee clock clown coat coin cookie corgi couch cow crab crane crocodile crown cup cupcake
curtain dachshund deer desk dinosaur dog doll dolphin donkey door dragon dragonfly dress drone drum duck
eagle earring egg elephant fan feather fence fish flamingo flower flute football fork fountain fox frog
giraffe girl glass glasses glove goat goldfish goose gorilla grape guitar hamburger hammer hamster handbag
hat headphones hedgehog helicopter helmet hippo horse house husky iguana jacket jar jellyfish kangaroo
kettle keyboard kitten knife koala ladder ladybug lamp lantern laptop lemon leopard lighthouse lion lizard
llama lobster man mask mattress microphone microscope mirror monkey moose motorcycle mouse mug mushroom
necklace notebook octopus orange ostrich otter owl pan panda parrot peacock pear pen penguin
perfume phone piano pig pigeon pillow pineapple pizza plate poodle pumpkin puppy purse rabbit raccoon radio
ram rat rhino ring robot rocket rose rug sandal sandwich saxophone scarf scissors scooter seal shark sheep
ship shirt shoe skateboard skirt skull skyscraper sloth snail snake sneaker snowman sofa spider spoon
squirrel starfish statue strawberry suitcase sunflower sunglasses surfboard swan sweater sword table tank
teapot telescope television tent tie tiger toaster tomato tortoise tower toy tractor train tree trophy truck
trumpet tulip turkey turtle umbrella unicorn van vase violin walrus watch watermelon whale windmill wolf
woman zebra
"""
NOUNS: tuple[str, ...] = tuple(_NOUNS.split())
