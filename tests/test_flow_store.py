"""Where intermediate results are kept: room, bits, letting go."""

import torch

from qartsr_lib.backbones.steps import Flow
from qartsr_lib.training.finetuning.flows import Flows, Network, Room, free_memory

SIZE = 4 * (2 * 3 + 5)  # bytes of one flow


def flow(number: int) -> Flow:
    x = torch.full((1, 2, 1, 3), float(number)).contiguous(memory_format=torch.channels_last)
    return Flow(x, skips=(torch.full((5,), number + 0.1),))


def same(one: Flow, other: Flow) -> bool:
    pairs = zip(one.tensors(), other.tensors(), strict=True)
    return all(torch.equal(a, b) and a.stride() == b.stride() for a, b in pairs)


def chain(calls: list[int]) -> Network:
    """Step number n makes flow(n + 1) and says that it ran."""
    steps = [(str(n), lambda _, n=n: calls.append(n) or flow(n + 1)) for n in range(4)]
    return Network(steps, [flow(0).x, flow(0).x])


def test_what_there_is_room_for_is_computed_once():
    calls: list[int] = []
    room = Room(2 * SIZE)
    flows = Flows(chain(calls), [2, 3, 4], room)
    for _ in range(2):
        found = flows.at(0, [2, 3, 4])
        assert all(same(found[position], flow(position)) for position in (2, 3, 4))
    assert calls == [0, 1, 2, 3, 3] and room.left == 0  # of three flows the last found no room
    flows.at(1, [2])
    assert calls[5:] == [0, 1]  # another batch


def test_letting_go_makes_room_again():
    calls: list[int] = []
    room = Room(SIZE)
    flows, others = (Flows(chain(calls), [2, 4], room) for _ in range(2))
    flows.at(0, [2])
    flows.narrow([4])
    assert room.left == SIZE
    others.at(0, [2])
    assert room.left == 0 and not flows.at(0, [4])[4].x.requires_grad
    assert others.at(0, [2]) and calls == [0, 1, 0, 1, 0, 1, 2, 3]


def test_the_room_is_a_share_of_what_is_free():
    assert 2**20 < Room().left < 0.75 * free_memory()
