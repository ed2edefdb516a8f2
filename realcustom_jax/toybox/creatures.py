"""The living words of the toybox. Each function draws one word; random numbers from `look` are identity.

The order of the calls to `look` is part of the drawing: another order gives other identities.
"""

import numpy as np

from realcustom_jax.toybox.palette import Look
from realcustom_jax.toybox.pen import INK, Pen, rounded

NOSE = (232, 110, 130)
BEAK = (255, 176, 40)


def cat(pen: Pen, look: Look) -> None:
    """A sitting cat seen from the front: ears, whiskers, a curved tail."""
    ear, head, body = look.between(0.13, 0.30), look.between(0.22, 0.29), look.between(0.19, 0.30)
    side, high = look.pick(-1, 1), look.between(0.25, 0.62)
    y, floor = 0.40, 0.98
    # The tail first: it is behind the body.
    t = np.linspace(0, 1, 12)
    pen.rod(
        np.stack([0.5 + side * (0.16 + 0.30 * np.sin(t * 2.2)), floor - 0.07 - (floor - high) * t**1.5], 1),
        0.075,
        "second",
    )
    pen.oval(0.5, 0.76, body, 0.23, power=2.4)
    pen.oval(0.5, 0.80, body * 0.5, 0.15, (250, 238, 222), ink=False)
    for s in (-1, 1):
        pen.oval(0.5 + s * body * 0.55, floor - 0.045, 0.085, 0.055, "second")
        tip = (0.5 + s * head * 0.92, y - 0.13 - ear)
        pen.shape(  # the double tip keeps the ear pointed when corners are rounded
            rounded([(0.5 + s * head * 0.12, y - 0.14), tip, tip, (0.5 + s * head * 1.0, y)], 2), "second"
        )
    pen.oval(0.5, y, head, 0.205, power=2.3)
    pen.oval(0.5, y + 0.095, 0.105, 0.075, (250, 238, 222), ink=False, shade=False)
    for s in (-1, 1):
        pen.eye(0.5 + s * head * 0.46, y - 0.02, 0.058)
        for dy in (-0.02, 0.045):
            pen.stroke([(0.5 + s * 0.12, y + 0.09), (0.5 + s * (head + 0.05), y + 0.09 + dy)], 0.018)
    pen.shape([(0.46, y + 0.06), (0.54, y + 0.06), (0.5, y + 0.10)], NOSE, shade=False)
    pen.mark_head(0.5, y, head, 0.205)
    hat = look.pick("none", "none", "bow", "party", "crown")
    # A bow sits at the neck, hats on the head.
    pen.hat(0.5, y + 0.24 if hat == "bow" else y - 0.18, 0.24, hat)


def dog(pen: Pen, look: Look) -> None:
    """A standing dog seen from the side: long snout, floppy ear, tail up."""
    long, legs, tall = look.between(0.22, 0.36), look.between(0.10, 0.25), look.between(0.12, 0.18)
    ear, tail = look.between(0.13, 0.27), look.between(0.12, 0.28)
    floor, x = 0.96, 0.42
    y = floor - legs - tall
    hx, hy = x + long * 0.95, y - tall - 0.10
    pen.rod(
        [
            (x - long * 0.85, y - tall * 0.4),
            (x - long * 1.05, y - tall - 0.5 * tail),
            (x - long * 0.95, y - tall - tail),
        ],
        0.065,
        "second",
    )
    for dx in (-0.82, -0.50, 0.48, 0.80):  # outer legs are in front: main colour
        pen.rod(
            [(x + dx * long, y), (x + dx * long, floor - 0.04)], 0.085, "main" if abs(dx) > 0.6 else "second"
        )
    pen.oval(x, y, long, tall, power=2.8)
    # The neck has no outline, so it joins body and head.
    pen.oval(hx - 0.06, hy + 0.12, 0.12, 0.16, "main", turn=28, ink=False, shade=False)
    pen.oval(hx, hy, 0.175, 0.165, "main", power=2.3)
    pen.oval(hx + 0.16, hy + 0.065, 0.125, 0.085, (250, 238, 222), power=2.4)
    pen.oval(hx + 0.27, hy + 0.025, 0.045, 0.04, INK, ink=False, shade=False)
    if look.chance(0.5):
        pen.oval(hx + 0.17, hy + 0.165, 0.04, 0.06, (240, 90, 110))
    pen.mark_head(hx + 0.05, hy, 0.22, 0.17)
    pen.eye(hx + 0.055, hy - 0.04, 0.052)
    pen.oval(hx - 0.12, hy + ear * 0.42, 0.075, ear * 0.72, "second", turn=12)
    collar = look.pick((220, 60, 60), (60, 110, 220), (250, 205, 60))
    pen.rod([(hx - 0.17, hy + 0.19), (hx + 0.03, hy + 0.19)], 0.035, collar)
    pen.hat(hx - 0.02, hy - 0.14, 0.22, look.pick("none", "none", "party", "top"))


def bird(pen: Pen, look: Look) -> None:
    """A plump bird seen from the side: wing, beak, tail feathers, thin legs."""
    fat, tall, tail = look.between(0.22, 0.32), look.between(0.22, 0.30), look.between(0.14, 0.32)
    beak, legs, crest = look.between(0.10, 0.24), look.between(0.06, 0.18), look.pick(0, 1, 3)
    x, y = 0.48, 0.56
    for dx in (-0.06, 0.09):
        foot = y + tall + legs
        pen.rod([(x + dx, y + tall * 0.8), (x + dx, foot), (x + dx + 0.07, foot)], 0.022, BEAK)
    tx = x - fat * 0.7
    for k in (-1, 0, 1):
        pen.oval(
            tx - tail * 0.55, y + 0.02 + k * 0.075 - tail * 0.1, tail * 0.75, 0.06, "second", turn=14 - k * 16
        )
    head = (x + fat * 0.55, y - tall * 0.78)
    for k in range(crest):
        a = np.deg2rad(-100 - 24 * k)
        pen.rod([head, (head[0] + 0.27 * np.cos(a), head[1] + 0.27 * np.sin(a))], 0.035, "second")
    pen.shape(
        rounded(
            [
                (head[0] + 0.12, head[1] - 0.05),
                (head[0] + 0.13 + beak, head[1] + 0.03),
                (head[0] + 0.12, head[1] + 0.09),
            ],
            1,
        ),
        BEAK,
    )
    pen.oval(*head, 0.17, 0.165, "main")
    pen.oval(x, y, fat, tall, turn=-18)
    # The head once more without outline, so that no line separates it from the body.
    pen.oval(*head, 0.155, 0.15, "main", ink=False, shade=False)
    wing = look.between(0.14, 0.22)
    points = [(x - fat * 0.95, y + 0.10), (x - 0.05, y - wing), (x + 0.14, y - 0.04), (x + 0.02, y + wing)]
    pen.shape(rounded(points), "second")
    pen.mark_head(head[0] + 0.05, head[1], 0.2, 0.165)
    pen.eye(head[0] + 0.05, head[1] - 0.02, 0.055)


def fish(pen: Pen, look: Look) -> None:
    """A fish swimming to the right: tail fin, back fin, big eye."""
    long, tall = look.between(0.28, 0.38), look.between(0.16, 0.30)
    tail, fin, fork = look.between(0.15, 0.28), look.between(0.08, 0.22), look.between(0.0, 0.12)
    x, y = 0.55, 0.5
    edge = x - long * 0.85
    back = edge - 0.17
    pen.shape(rounded([(edge + 0.06, y), (back, y - tail), (back + fork, y), (back, y + tail)], 2), "second")
    if look.chance(0.5):  # a pointed back fin, or a long one
        top = [
            (x - long * 0.6, y - tall * 0.5),
            (x - long * 0.3, y - tall - fin),
            (x + long * 0.5, y - tall * 0.6),
        ]
    else:
        top = [
            (x - long * 0.7, y - tall * 0.5),
            (x - long * 0.75, y - tall - fin),
            (x, y - tall - fin * 0.7),
            (x + long * 0.5, y - tall * 0.6),
        ]
    pen.shape(rounded(top, 2), "second")
    pen.shape(
        [(x - 0.10, y + tall * 0.8), (x - 0.16, y + tall + fin * 0.8), (x + 0.10, y + tall * 0.9)], "second"
    )
    pen.oval(x, y, long, tall, power=look.between(1.8, 2.3))
    pen.shape(rounded([(x - 0.02, y + 0.02), (x - 0.20, y + 0.0), (x - 0.16, y + 0.15)], 2), "second")
    pen.mark_head(x + long * 0.6, y, long * 0.4, tall * 0.8)
    pen.eye(x + long * 0.55, y - tall * 0.22, 0.065)
    pen.smile(x + long * 0.72, y + tall * 0.28, 0.10)
    pen.hat(x + long * 0.35, y - tall * 0.86, 0.2, look.pick("none", "none", "none", "crown", "top"))


def butterfly(pen: Pen, look: Look) -> None:
    """An open butterfly: two pairs of patterned wings, antennae."""
    upper, lower = look.between(0.24, 0.36), look.between(0.16, 0.27)
    width, point = look.between(0.30, 0.44), look.between(-0.05, 0.12)
    tails = look.chance(0.4)
    # Lower wings first: the upper ones cover their edges.
    for s in (-1, 1):
        low = [
            (0.5, 0.5),
            (0.5 + s * width * 0.95, 0.52),
            (0.5 + s * width * 0.85, 0.56 + lower * 1.25),
            (0.5 + s * 0.10, 0.56 + lower),
        ]
        if tails:
            low.insert(3, (0.5 + s * width * 0.55, 0.68 + lower * 1.5))
        pen.shape(rounded(low), "second")
        high = [
            (0.5, 0.36),
            (0.5 + s * width * 0.7, 0.42 - upper - point),
            (0.5 + s * width * 1.25, 0.42 - upper),
            (0.5 + s * width * 1.1, 0.54),
            (0.5, 0.58),
        ]
        pen.shape(rounded(high))
        pen.oval(0.5 + s * width * 0.52, 0.55 + lower * 0.55, 0.05, 0.055, "main", shade=False)
        pen.stroke([(0.5, 0.30), (0.5 + s * 0.06, 0.16), (0.5 + s * 0.13, 0.10)], 0.024)
        pen.dot(0.5 + s * 0.13, 0.10, 0.028)
    pen.oval(0.5, 0.54, 0.048, 0.22, (92, 70, 84))
    pen.oval(0.5, 0.31, 0.068, 0.068, (92, 70, 84))
    pen.mark_head(0.5, 0.31, 0.068, 0.068)
    for s in (-1, 1):
        pen.dot(0.5 + s * 0.03, 0.30, 0.022, (255, 255, 255))


def turtle(pen: Pen, look: Look) -> None:
    """A walking turtle seen from the side: patterned dome, head on a neck, stubby legs."""
    wide, dome, neck = look.between(0.29, 0.37), look.between(0.26, 0.44), look.between(0.02, 0.20)
    legs = look.between(0.08, 0.15)
    x, floor = 0.44, 0.92
    y = floor - legs
    skin = look.pick((150, 200, 110), (190, 200, 120), (120, 190, 150), (225, 190, 130))
    hx, hy = x + wide + 0.10, y - 0.10 - neck
    pen.shape([(x - wide * 0.8, y - 0.05), (x - wide - 0.13, y + 0.05), (x - wide * 0.8, y + 0.04)], skin)
    pen.rod([(x + wide * 0.7, y - 0.02), (hx - 0.02, hy + 0.02)], 0.11, skin)
    for dx in (-0.62, 0.62):
        pen.oval(x + dx * wide, floor - 0.06, 0.085, legs * 0.5 + 0.055, skin, power=3)
    pen.oval(hx, hy, 0.125, 0.11, skin)
    pen.mark_head(hx, hy, 0.125, 0.11)
    pen.eye(hx + 0.035, hy - 0.025, 0.048)
    pen.smile(hx + 0.065, hy + 0.04, 0.08)
    # The shell last: it covers the joints of neck and legs.
    t = np.linspace(np.pi, 2 * np.pi, 20)
    power = look.between(0.75, 1.1)
    arc = np.stack([x + wide * np.cos(t), y - dome * np.abs(np.sin(t)) ** power], 1)
    pen.shape(np.concatenate([arc, [(x + wide, y + 0.03), (x - wide, y + 0.03)]]))
    pen.rod([(x - wide, y + 0.02), (x + wide, y + 0.02)], 0.06, "second")
    pen.hat(hx, hy - 0.09, 0.18, look.pick("none", "none", "party", "top", "bow"))
