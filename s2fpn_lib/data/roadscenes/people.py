"""People of a RoadScene: pedestrians and bicyclists as jointed figures with human proportions."""

import math

from numpy.random import Generator

from s2fpn_lib.data.roadscenes.draw import Bars, Canvas
from s2fpn_lib.data.roadscenes.objects import (
    BICYCLIST,
    PEDESTRIAN,
    Board,
    between,
    box,
    contact_shadow,
    disc,
    jitter,
    limb,
    pick,
    shade,
)

SKIN = [(224, 182, 152), (196, 146, 112), (142, 98, 72), (92, 62, 48), (236, 200, 176)]
HAIR = [(38, 30, 26), (84, 58, 38), (160, 124, 76), (150, 148, 146), (60, 40, 30)]
CLOTHES = [(52, 56, 66), (150, 40, 44), (226, 222, 214), (60, 84, 140), (96, 100, 84), (206, 166, 70), (34, 36, 38)]
CLOTHES += [(134, 134, 138), (176, 118, 140), (70, 110, 80), (186, 150, 122), (90, 72, 110)]


def pedestrian(canvas: Canvas, rng: Generator, key, x, y) -> None:
    """A walking or standing person, 1.2 to 1.9 m tall, with the proportions of the eight-heads canon varied to
    seven."""
    child = rng.random() < 0.12
    h = between(rng, 1.15, 1.4) if child else between(rng, 1.58, 1.92)
    facing = pick(rng, [-1, 1])
    profile = between(rng, 0.25, 1.0)  # 1: seen from the side, 0: from front or back
    stride = between(rng, 0.0, 0.26) * h * (0.35 + 0.65 * profile) if rng.random() < 0.8 else 0.03 * h
    skin, hair, shirt, trousers = (jitter(rng, pick(rng, p), 10) for p in (SKIN, HAIR, CLOTHES, CLOTHES))
    shoes = pick(rng, [(30, 28, 28), (210, 208, 204), (94, 64, 46)])
    board = Board(x, y)
    contact_shadow(canvas, x, y, 0.35, 0.22)
    canvas.cast(board.place(box(-0.2, 0, 0.2, h)))

    def part(outline, color):
        canvas.shape(key, board.place([(u * facing, z) for u, z in outline]), PEDESTRIAN, color)

    hip, shoulder, broad = 0.5 * h, 0.82 * h, 0.115 * h * (1.25 - 0.35 * profile)
    apart = 0.045 * h * (1.2 - profile)
    leg = 0.085 * h
    skirt, coat = rng.random() < 0.18, rng.random() < 0.3
    for sign, tone in ((-1, 0.78), (1, 1.0)):
        foot = (sign * (stride + apart), 0.03 * h)
        knee = (sign * (stride * 0.45 + apart) + 0.03 * h * profile, 0.27 * h)
        bare = skin if skirt else trousers
        part(limb((sign * apart, hip), knee, leg * 1.15, leg * 0.9), shade(bare, tone))
        part(limb(knee, foot, leg * 0.9, leg * 0.62), shade(bare, tone))
        part(box(foot[0] - 0.03 * h, 0, foot[0] + 0.075 * h, 0.04 * h), shade(shoes, tone))
    swing = stride * 0.7
    elbow_z, hand_z = 0.64 * h, 0.48 * h

    def arm(sign, tone):
        shoulder_u = sign * broad * (1 - 0.75 * profile)
        hand = (shoulder_u - sign * swing + sign * 0.03 * h * (1 - profile), hand_z)
        elbow = ((shoulder_u + hand[0]) / 2 - 0.02 * h + sign * 0.02 * h, elbow_z)
        part(limb((shoulder_u, shoulder - 0.03 * h), elbow, 0.07 * h, 0.058 * h), shade(shirt, tone))
        part(limb(elbow, hand, 0.058 * h, 0.045 * h), shade(shirt, tone))
        part(disc(hand[0], hand_z, 0.028 * h), skin)

    arm(-1, 0.75)
    hem = hip - (0.17 * h if coat or skirt else 0.0)
    flare = broad * (1.1 if coat or skirt else 0.8)
    part(
        [
            (-flare, hem),
            (flare, hem),
            (broad, shoulder - 0.05 * h),
            (broad * 0.7, shoulder),
            (-broad * 0.7, shoulder),
            (-broad, shoulder - 0.05 * h),
        ],
        shirt,
    )
    if skirt:
        part(
            [
                (-flare * 1.15, hem - 0.05 * h),
                (flare * 1.15, hem - 0.05 * h),
                (broad * 0.75, hip + 0.06 * h),
                (-broad * 0.75, hip + 0.06 * h),
            ],
            trousers,
        )
    if rng.random() < 0.25:
        part(box(-broad * 1.7, 0.58 * h, -broad * 0.6, 0.8 * h), jitter(rng, pick(rng, CLOTHES)))  # backpack
    part(limb((0, shoulder - 0.01 * h), (0.01 * h, 0.88 * h), 0.06 * h, 0.06 * h), skin)
    part(disc(0.012 * h, 0.925 * h, 0.055 * h, 0.07 * h), skin)
    part([(u - 0.012 * h, z) for u, z in disc(0, 0.95 * h, 0.06 * h, 0.052 * h)], hair)
    arm(1, 1.05)
    if rng.random() < 0.3:
        part(box(swing - 0.05 * h, 0.3 * h, swing + 0.09 * h, hand_z), jitter(rng, pick(rng, CLOTHES)))  # bag


def bicyclist(canvas: Canvas, rng: Generator, key, x, y, across: float) -> None:
    """A rider on a bicycle; `across` is 1 when seen from the side and near 0 when seen from behind or in front."""
    facing = pick(rng, [-1, 1])
    k = max(across, 0.12)
    board = Board(x, y)
    frame, shirt, trousers = (jitter(rng, pick(rng, CLOTHES)) for _ in range(3))
    skin, helmet = jitter(rng, pick(rng, SKIN), 10), jitter(rng, pick(rng, [*CLOTHES, *HAIR]))
    contact_shadow(canvas, x, y, 0.3 + 0.6 * k, 0.25)
    canvas.cast(board.place(box(-0.3, 0, 0.3, 1.6)))
    r, tire = 0.35, (28, 28, 30)

    def place(points):
        return board.place([(u * facing, z) for u, z in points])

    def part(outline, color):
        canvas.shape(key, place(outline), BICYCLIST, color)

    def bone(a, b, wa, wb, color):
        part(limb((a[0] * k, a[1]), (b[0] * k, b[1]), wa, wb), color)

    for hub in (-0.52, 0.52):
        u = hub * k
        canvas.overlay(key, place(disc(u, r, r * k, r)), BICYCLIST, (150, 150, 150), (0, -1), Bars())
        outer, inner = disc(u, r, r * k + 0.03, r), disc(u, r, max(r * k - 0.035, 0.01), r - 0.05)
        part([*outer, outer[0], inner[0], *inner[::-1]], tire)  # a ring: out along the rim, back along the inside
    crank, saddle, bar = (-0.08, 0.34), (-0.24, 0.98), (0.4, 1.06)
    for a, b in (
        ((-0.52, r), crank),
        (crank, saddle),
        (crank, (0.36, 0.86)),
        (saddle, (0.36, 0.86)),
        ((0.52, r), bar),
        ((-0.52, r), saddle),
    ):
        bone(a, b, 0.05, 0.05, frame)
    turn = between(rng, 0, 2 * math.pi)
    hip, shoulder = (-0.2, 1.06), (0.12, 1.5)
    wide = 0.09 * (1.3 - k)

    def leg(sign, tone):
        foot = (crank[0] + 0.17 * sign * math.cos(turn), crank[1] + 0.17 * sign * math.sin(turn))
        knee = ((hip[0] + foot[0]) / 2 + 0.24, (hip[1] + foot[1]) / 2 + 0.08)
        off = sign * wide
        part(limb((hip[0] * k + off, hip[1]), (knee[0] * k + off * 1.6, knee[1]), 0.18, 0.14), shade(trousers, tone))
        part(limb((knee[0] * k + off * 1.6, knee[1]), (foot[0] * k + off, foot[1]), 0.13, 0.1), shade(trousers, tone))
        part(
            limb((foot[0] * k + off - 0.05, foot[1]), (foot[0] * k + off + 0.12, foot[1] - 0.02), 0.08, 0.07),
            (30, 30, 32),
        )

    leg(-1, 0.72)
    if k < 0.5:
        bar_half = 0.3 * (1 - k)
        part(limb((bar[0] * k - bar_half, bar[1]), (bar[0] * k + bar_half, bar[1]), 0.05, 0.05), tire)
    part(
        limb((shoulder[0] * k - wide * 1.8, shoulder[1] - 0.05), (bar[0] * k - wide * 2.4, bar[1]), 0.1, 0.07),
        shade(shirt, 0.75),
    )
    part(limb((hip[0] * k, hip[1] - 0.06), (shoulder[0] * k, shoulder[1] + 0.03), 0.3, 0.3 + 0.14 * (1 - k)), shirt)
    leg(1, 1.0)
    part(
        limb((shoulder[0] * k + wide * 1.8, shoulder[1] - 0.04), (bar[0] * k + wide * 2.4, bar[1]), 0.11, 0.08),
        shade(shirt, 1.1),
    )
    head = (0.2 * k, 1.68)
    part(disc(head[0], head[1], 0.1, 0.13), skin)
    part([(u, max(z, head[1] + 0.02)) for u, z in disc(head[0] - 0.02, head[1] + 0.04, 0.125, 0.12)], helmet)
