"""The lifeless words of the toybox. Each function draws one word; random numbers from `look` are identity.

The order of the calls to `look` is part of the drawing: another order gives other identities.
"""

import numpy as np

from realcustom_jax.toybox.palette import Look
from realcustom_jax.toybox.pen import Pen, rounded

GLASS = (196, 232, 250)
CREAM = (250, 238, 214)
WOOD = (150, 98, 60)
METAL = (196, 202, 214)
TYRE = (62, 58, 72)


def robot(pen: Pen, look: Look) -> None:
    """A toy robot seen from the front: box head with a screen face, antenna, arms and legs."""
    head, body = look.between(0.17, 0.27), look.between(0.17, 0.29)
    round_head, round_body = look.pick(2.2, 4, 9), look.pick(2.8, 5, 12)
    legs, lift = look.between(0.08, 0.20), look.pick(-0.16, 0.02, 0.18)
    floor = 0.98
    y1 = floor - legs
    y = y1 - 0.20
    top = y - 0.20 - 0.18
    for s in (-1, 1):
        pen.rod([(0.5 + s * body * 0.5, y1 - 0.04), (0.5 + s * body * 0.5, floor - 0.05)], 0.08, METAL)
        pen.oval(0.5 + s * body * 0.55, floor - 0.03, 0.10, 0.05, "second", power=3)
        hand = (0.5 + s * (body + 0.16), y + lift)
        pen.rod([(0.5 + s * body * 0.8, y - 0.10), (0.5 + s * (body + 0.09), y - 0.05), hand], 0.06, METAL)
        pen.oval(*hand, 0.065, 0.065, "second")
    # One antenna, or two with a probability of 1/3.
    for x in look.pick((0.5,), (0.5,), (0.5 - head * 0.55, 0.5 + head * 0.55)):
        pen.rod([(x, top), (x, top - 0.23)], 0.026, METAL)
        pen.oval(x, top - 0.25, 0.052, 0.052, "second")
    pen.rod([(0.5, y - 0.24), (0.5, y - 0.16)], 0.10, METAL)
    pen.oval(0.5, y, body, 0.20, power=round_body)
    pen.oval(0.5, top, head, 0.165, "main", power=round_head)
    # The screen is dark for every robot, so that the glowing eyes are always visible.
    pen.oval(0.5, top, head * 0.78, 0.11, (52, 58, 86), power=3.5, shade=False)
    pen.mark_head(0.5, top, head, 0.165)
    for s in (-1, 1):
        pen.dot(0.5 + s * head * 0.36, top - 0.01, 0.045, (150, 250, 240))
        pen.dot(0.5 + s * head * 0.36, top - 0.01, 0.018)
    pen.stroke([(0.47, top + 0.065), (0.53, top + 0.065)], 0.02, (150, 250, 240))


def car(pen: Pen, look: Look) -> None:
    """A toy car seen from the side: cabin with windows, two wheels, sometimes something on the roof."""
    long, tall, cabin = look.between(0.34, 0.50), look.between(0.13, 0.24), look.between(0.17, 0.27)
    wheel, shift = look.between(0.085, 0.135), look.between(-0.10, 0.06)
    slope = look.pick(0.03, 0.12)
    x, floor = 0.5, 0.86
    low = floor - wheel * 0.9
    high = low - tall
    left, right = x + shift - long * 0.62, x + shift + long * 0.5
    kind = look.pick("none", "flag", "box", "surf", "siren")
    if kind == "flag":
        pen.flag(left + 0.06, high - cabin - 0.22, high, 0.20)
    elif kind == "box":
        pen.box(left + 0.08, high - cabin - 0.11, right - 0.14, high - cabin, WOOD)
    elif kind == "surf":
        pen.oval(x + shift, high - cabin - 0.035, long * 0.7, 0.04, "second")
    elif kind == "siren":
        pen.oval(x + shift - 0.03, high - cabin - 0.02, 0.07, 0.06, (255, 120, 90))
    pen.shape(
        rounded(
            [
                (left, high + 0.06),
                (left + slope, high - cabin),
                (right - slope - 0.04, high - cabin),
                (right + 0.05, high + 0.06),
            ],
            2,
        ),
        "second",
    )
    # Two windows, on both sides of the door post.
    mid = x + shift - 0.02
    for a, b in ((left + slope + 0.045, mid - 0.025), (mid + 0.025, right - slope - 0.04)):
        top, foot = high - cabin * 0.76, high - 0.01
        pen.shape([(a, top), (b, top), (b + 0.01, foot), (a - 0.01, foot)], GLASS, shade=False)
    # The body covers the lower edge of the cabin; wheels cover the body.
    pen.oval(x, (low + high) / 2, long, tall / 2 + 0.025, power=5)
    pen.oval(x + long - 0.035, (low + high) / 2 - 0.02, 0.045, 0.045, (255, 236, 140), shade=False)
    pen.rod([(x - long * 0.98, low + 0.01), (x + long * 0.98, low + 0.01)], 0.035, METAL)
    for dx in (-0.58, 0.58):
        pen.oval(x + dx * long, floor - wheel, wheel, wheel, TYRE)
        pen.oval(x + dx * long, floor - wheel, wheel * 0.5, wheel * 0.5, "second", ink=False)


def house(pen: Pen, look: Look) -> None:
    """A little house: roof, door, windows, chimney."""
    wide, wall = look.between(0.24, 0.38), look.between(0.34, 0.52)
    roof, eaves = look.between(0.20, 0.42), look.between(0.04, 0.10)
    floor, kind = 0.98, look.pick("peak", "peak", "barn", "dome")
    y = floor - wall
    # The chimney first: the roof covers its foot.
    cx = 0.5 + wide * look.pick(-0.55, 0.55)
    pen.box(cx - 0.055, y - roof * 0.95, cx + 0.055, y - 0.02, (196, 108, 88))
    pen.box(0.5 - wide, y - 0.04, 0.5 + wide, floor)
    out = wide + eaves
    if kind == "peak":
        pen.shape([(0.5 - out, y), (0.5, y - roof), (0.5 + out, y)], "second")
    elif kind == "barn":
        ridge, ry = out * 0.62, y - roof * 0.9
        pen.shape([(0.5 - out, y), (0.5 - ridge, ry), (0.5 + ridge, ry), (0.5 + out, y)], "second")
    else:
        t = np.linspace(np.pi, 2 * np.pi, 24)
        pen.shape(np.stack([0.5 + out * np.cos(t), y + roof * 0.9 * np.sin(t)], 1), "second")
    door = look.pick(-0.45, 0.0, 0.45) * wide
    half_turn = np.linspace(np.pi, 2 * np.pi, 7)
    arch = np.stack([0.5 + door + 0.08 * np.cos(half_turn), floor - 0.20 + 0.08 * np.sin(half_turn)], 1)
    pen.shape([(0.5 + door - 0.08, floor), *arch, (0.5 + door + 0.08, floor)], (122, 74, 62))
    pen.dot(0.5 + door + 0.04, floor - 0.12, 0.018, (255, 220, 110))
    windows = [(0.5, y - roof * 0.38)] if kind != "barn" else []  # a barn's gable is too flat for a window
    # A door in the middle has a window on each side; a door at the side has one window opposite.
    beside = (-0.6, 0.6) if door == 0 else (-np.sign(door) * 0.42,)
    windows += [(0.5 + dx * wide, floor - wall * 0.62) for dx in beside]
    power = look.pick(2, 9)
    for wx, wy in windows:
        pen.oval(wx, wy, 0.07, 0.07, (255, 240, 160), power=power, shade=False)
        pen.stroke([(wx, wy - 0.065), (wx, wy + 0.065)], 0.016)
        pen.stroke([(wx - 0.065, wy), (wx + 0.065, wy)], 0.016)


def rocket(pen: Pen, look: Look) -> None:
    """A rocket flying up: pointed nose, round window, fins, flame."""
    wide, nose, fin = look.between(0.13, 0.23), look.between(0.20, 0.38), look.between(0.12, 0.24)
    sweep, window = look.between(-0.02, 0.12), look.between(0.065, 0.10)
    flame = look.between(0.12, 0.24)
    top, y0, y1 = 0.02, 0.02 + nose, 0.80
    pen.shape(rounded([(0.5 - 0.11, y1), (0.5, y1 + flame * 1.4), (0.5 + 0.11, y1)], 1), (255, 140, 50))
    pen.shape(
        rounded([(0.5 - 0.05, y1), (0.5, y1 + flame * 0.8), (0.5 + 0.05, y1)], 1), (255, 230, 110), ink=False
    )
    for s in (-1, 1):
        pen.shape(
            rounded(
                [
                    (0.5 + s * wide * 0.5, y1 - 0.30),
                    (0.5 + s * (wide + fin), y1 - 0.02),
                    (0.5 + s * (wide + fin), y1 + sweep),
                    (0.5 + s * wide * 0.4, y1),
                ],
                1,
            ),
            "second",
        )
    t = np.linspace(0, 1, 14)
    # Half width of the nose: from 0 at the tip to `wide`, round or pointed.
    half = wide * np.sin(t * np.pi / 2) ** look.pick(0.75, 1.0)
    left = np.stack([0.5 - half, top + nose * t], 1)
    hull = np.concatenate(
        [left, [(0.5 - wide * 0.7, y1), (0.5 + wide * 0.7, y1)], left[::-1] * (-1, 1) + (1, 0)]
    )
    pen.shape(hull)
    # The tip of the nose has the second colour.
    cut = 9
    half_cut = np.concatenate([left[: cut + 1], (left[: cut + 1][::-1]) * (-1, 1) + (1, 0)])
    pen.shape(half_cut, "second", shade=False)
    for k in range(look.pick(1, 1, 2)):
        y = y0 + 0.09 + k * 0.21
        pen.oval(0.5, y, window + 0.025, window + 0.025, METAL, shade=False)
        pen.oval(0.5, y, window, window, GLASS)


def mushroom(pen: Pen, look: Look) -> None:
    """A mushroom with a patterned cap and a face on its stem."""
    wide, high, flat = look.between(0.30, 0.48), look.between(0.28, 0.50), look.between(0.55, 1.05)
    stem, long = look.between(0.11, 0.19), look.between(0.26, 0.40)
    floor = 0.98
    y = floor - long
    bulge = look.between(0.0, 0.07)
    foot = stem + bulge
    pen.shape(
        rounded(
            [(0.5 - stem, y - 0.08), (0.5 - foot, floor), (0.5 + foot, floor), (0.5 + stem, y - 0.08)], 2
        ),
        CREAM,
    )
    # A plain cap shows no second colour, so its rim does.
    skirt = look.chance(0.4)
    t = np.linspace(np.pi, 2 * np.pi, 24)
    arc = np.stack([0.5 + wide * np.cos(t), y - high * np.abs(np.sin(t)) ** flat], 1)
    pen.shape(np.concatenate([arc, [(0.5 + wide * 0.6, y + 0.05), (0.5 - wide * 0.6, y + 0.05)]]))
    if skirt or look.pattern == "plain":
        pen.rod([(0.5 - wide * 0.66, y + 0.035), (0.5 + wide * 0.66, y + 0.035)], 0.065, "second")
    if look.chance(0.75):
        pen.face(0.5, y + long * 0.52, stem * 0.95)


def tree(pen: Pen, look: Look) -> None:
    """A storybook tree: trunk and a patterned crown, round, cloudy, tall or in tiers."""
    kind = look.pick("round", "cloud", "tall", "tiers")
    wide, trunk, long = look.between(0.28, 0.42), look.between(0.05, 0.10), look.between(0.16, 0.34)
    floor = 0.98
    y = floor - long
    root = trunk * 1.5
    pen.shape(
        [(0.5 - trunk, y - 0.12), (0.5 - root, floor), (0.5 + root, floor), (0.5 + trunk, y - 0.12)], WOOD
    )
    if kind == "round":
        pen.oval(0.5, y - 0.26, wide, 0.34)
    elif kind == "tall":
        pen.oval(0.5, y - 0.34, wide * 0.72, 0.42, power=1.7)
    elif kind == "cloud":
        t = np.linspace(0, 2 * np.pi, 90)
        bumps = 1 + 0.13 * np.abs(np.sin(t * look.pick(2.5, 3.5)))
        pen.shape(np.stack([0.5 + wide * bumps * np.cos(t), y - 0.26 + 0.30 * bumps * np.sin(t)], 1))
    else:
        for k, w in enumerate((1.0, 0.78, 0.54)):
            b = y - 0.18 * k
            pen.shape(
                [(0.5 - wide * w, b), (0.5, b - 0.32), (0.5 + wide * w, b)], "pattern" if k != 1 else "second"
            )
    # Fruit in the second colour, if nothing else of the tree shows it.
    fruit, ripe = (look.pick(0, 3, 5) if kind in ("round", "cloud") else 0), (240, 70, 70)
    if look.pattern == "plain" and kind != "tiers":
        fruit, ripe = 5, "second"
    reach = wide * (0.7 if kind == "tall" else 1.0)
    for dx, dy in ((-0.55, 0.15), (0.5, 0.25), (0.0, -0.45), (0.5, -0.4), (-0.5, -0.4))[:fruit]:
        pen.oval(0.5 + dx * reach, y - 0.24 + dy * 0.34, 0.06, 0.06, ripe)


def boat(pen: Pen, look: Look) -> None:
    """A sailing boat or a little steamer."""
    long, deep, mast = look.between(0.32, 0.46), look.between(0.15, 0.25), look.between(0.42, 0.62)
    y, kind = 0.94 - deep, look.pick("sail", "sail", "steam")
    rake = look.between(0.06, 0.20)
    if kind == "sail":
        pen.rod([(0.5, y), (0.5, y - mast)], 0.03, WOOD)
        jib = look.between(0.20, 0.36)
        pen.shape([(0.54, y - mast), (0.54, y - 0.05), (0.54 + long * 0.95, y - 0.07)], "pattern")
        pen.shape([(0.46, y - mast * 0.86), (0.46, y - 0.05), (0.46 - jib, y - 0.05)], "pattern")
        pen.flag(0.5, y - mast - 0.08, y - mast, -0.15)
        # Plain sails show no second colour, so the hull does.
        hull = "second" if look.pattern == "plain" else "main"
    else:
        w = long * 0.55
        stack = look.between(0.14, 0.30)
        for dx in look.pick((0.0,), (-0.14, 0.10)):
            pen.box(0.5 + dx - 0.055, y - 0.24 - stack, 0.5 + dx + 0.055, y - 0.2, "second")
        pen.box(0.5 - w, y - 0.26, 0.5 + w, y + 0.02, CREAM)
        for dx in (-0.55, 0, 0.55):
            pen.oval(0.5 + dx * w, y - 0.12, 0.05, 0.05, GLASS)
        hull = "pattern"
    keel = long - rake
    pen.shape(
        rounded([(0.5 - long, y), (0.5 - keel, y + deep), (0.5 + keel, y + deep), (0.5 + long, y - 0.03)], 1),
        hull,
    )
    pen.rod(
        [(0.5 - long * 0.93, y + 0.03), (0.5 + long * 0.93, y + 0.03)],
        0.045,
        "second" if hull == "main" else "main",
    )


def teapot(pen: Pen, look: Look) -> None:
    """A teapot: belly, spout, handle, lid with a knob."""
    wide, tall, boxy = look.between(0.22, 0.31), look.between(0.19, 0.32), look.pick(1.9, 2.3, 3.6)
    spout, handle = look.between(0.14, 0.28), look.between(0.10, 0.19)
    floor = 0.92
    y = floor - tall
    t = np.linspace(-1.9, 1.9, 16)
    pen.rod(
        np.stack([0.5 - wide * 0.9 - handle * np.cos(t), y - 0.02 + tall * 0.6 * np.sin(t)], 1),
        0.055,
        "second",
    )
    x = 0.5 + wide
    # Spout and handle first: the belly covers their ends.
    lip = y - spout
    pen.shape(
        rounded(
            [
                (x - 0.10, y + tall * 0.1),
                (x + 0.05, y - 0.02),
                (x + 0.09, lip),
                (x + 0.10, lip),
                (x + 0.23, lip - 0.03),
                (x + 0.22, lip),
                (x + 0.15, y + tall * 0.3),
                (x - 0.08, y + tall * 0.65),
            ],
            2,
        ),
        "second",
    )
    pen.oval(0.5, floor - 0.02, wide * 0.62, 0.045, "second", power=3)
    pen.oval(0.5, y, wide, tall, power=boxy)
    lid = wide * look.between(0.5, 0.75)
    knob = look.between(0.045, 0.08)
    pen.oval(0.5, y - tall - 0.05, knob, knob, "main")
    pen.oval(0.5, y - tall + 0.03, lid, 0.07, "second")
    if look.chance(0.6):
        pen.oval(0.5, y + tall * 0.1, wide * 0.62, tall * 0.42, CREAM, ink=False, shade=False)
        pen.face(0.5, y + tall * 0.02, 0.18)


def balloon(pen: Pen, look: Look) -> None:
    """A hot-air balloon: envelope, ropes, basket."""
    wide, tall, point = look.between(0.27, 0.39), look.between(0.27, 0.38), look.between(0.10, 0.24)
    gap, basket = look.between(0.06, 0.16), look.between(0.11, 0.17)
    y = tall + 0.02
    t = np.linspace(np.pi * 0.88, np.pi * 2.12, 30)
    dome = np.stack([0.5 + wide * np.cos(t), y + tall * np.sin(t)], 1)
    neck = y + tall * 0.45 + point
    b = neck + gap
    for s in (-1, 1):
        pen.stroke([(0.5 + s * 0.11, neck - 0.02), (0.5 + s * basket * 0.85, b)], 0.022)
        pen.stroke([(0.5 + s * wide * 0.8, y + tall * 0.35), (0.5 + s * basket, b)], 0.014)
    pen.shape(np.concatenate([dome, [(0.5 + 0.11, neck), (0.5 - 0.11, neck)]]))
    if look.pattern == "plain":
        # Seams, because a plain balloon without them looks like a light bulb.
        t = np.linspace(-1.4, 1.1, 12)
        for s in (-1, 1):
            pen.stroke(
                np.stack([0.5 + s * wide * 0.4 * np.cos(t), y + tall * np.sin(t)], 1), 0.035, look.rgb[1]
            )
    pen.rod([(0.5 - 0.11, neck), (0.5 + 0.11, neck)], 0.05, "second")
    if look.chance(0.5):
        pen.oval(0.5, y - tall * 0.97, wide * 0.28, 0.045, "second")
    low = basket * 0.8
    pen.shape([(0.5 - basket, b), (0.5 - low, b + 0.17), (0.5 + low, b + 0.17), (0.5 + basket, b)], WOOD)
    pen.rod([(0.5 - basket, b), (0.5 + basket, b)], 0.035, (206, 150, 92))
    if look.chance(0.4):
        pen.flag(0.5 - basket, b - 0.02, b + 0.1, -0.14)


def cup(pen: Pen, look: Look) -> None:
    """A cup of something warm: patterned mug, big handle, a saucer or a straw for some."""
    wide, tall, taper = look.between(0.23, 0.33), look.between(0.40, 0.68), look.between(0.62, 1.0)
    ring = look.between(0.12, 0.20)
    floor = 0.94
    y = floor - tall
    t = np.linspace(-1.7, 1.7, 14)
    x = 0.44
    pen.rod(
        np.stack([x + wide * 0.9 + ring * np.cos(t), y + tall * 0.46 + tall * 0.28 * np.sin(t)], 1),
        0.06,
        "second",
    )
    extra = look.pick("none", "saucer", "straw", "saucer")
    if extra == "saucer":
        pen.oval(x, floor, wide * 1.45, 0.055, "second", power=2.6)
    if extra == "straw":
        pen.rod([(x + 0.02, y), (x + 0.12, y - 0.20), (x + 0.22, y - 0.22)], 0.045, "second")
    left, right, low = x - wide, x + wide, wide * taper
    # Double points keep the upper corners sharp when corners are rounded.
    pen.shape(rounded([(left, y), (left, y), (x - low, floor), (x + low, floor), (right, y), (right, y)], 2))
    pen.oval(x, y + 0.02, wide, 0.07, "second")
    pen.oval(
        x, y + 0.03, wide * 0.8, 0.042, look.pick((110, 68, 48), (120, 72, 50), (214, 170, 96)), shade=False
    )
    if look.chance(0.6):
        pen.oval(x, y + tall * 0.56, wide * 0.66 * (0.5 + taper / 2), 0.15, CREAM, ink=False, shade=False)
        pen.face(x, y + tall * 0.5, 0.18)
