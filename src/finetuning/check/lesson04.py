"""Lesson 04: bytes per rank, shards cut anew, the loss of a cut batch, the lowest stage that fits."""

from typing import Any

from finetuning.check.feedback import Mistake, exercise, name_mistake, near, number, result
from finetuning.distributed.memory import expected_bytes


@exercise(
    "Count per parameter first: 2 bytes for the weight, 2 for its gradient, 4 for the master copy, 8 for Adam's two moments.",
    "Stage 1 divides master and moments by the ranks, stage 2 the gradients too, stage 3 the weights too.",
    "Each part is its bytes, divided by `ranks` when `stage` has reached the part's own stage: 1, 1, 2 or 3.",
)
def zero_bytes(answer: Any) -> str:
    """``answer(parameters, stage, ranks)``: bytes per rank of a bf16 training with Adam and an fp32 master copy."""
    cases = [(1000, stage, ranks) for stage in range(4) for ranks in (2, 4)]
    given = {case: number(result(answer, *case)) for case in cases}
    plain = given[1000, 0, 4]
    if near(plain, 12000):
        raise Mistake(
            "per parameter you count 12 bytes in stage 0; 16-bit weights also need a master copy in 32 bits, or Adam has a second moment."
        )
    if near(plain, 128000):
        raise Mistake("these are bits; a byte has eight.")
    if near(plain, 4000):
        raise Mistake("stage 0 shards nothing: every rank holds everything.")
    if near(given[1000, 1, 4], 4000):
        raise Mistake("in stage 1 you divide everything by the ranks; it shards the master copy and the moments only.")
    if near(given[1000, 1, 2], given[1000, 2, 2]):
        raise Mistake("stages 1 and 2 come out alike, but stage 2 shards the gradients too.")
    if near(given[1000, 2, 2], given[1000, 3, 2]):
        raise Mistake("stages 2 and 3 come out alike, but stage 3 shards the weights too.")
    for case in cases:
        wanted = sum(expected_bytes(case[0], case[1], case[2], bf16=True).values())
        if not near(given[case], wanted):
            raise Mistake(
                f"for {case[0]} parameters, stage {case[1]} and {case[2]} ranks it is {wanted:g} bytes, and you got {given[case]:g}."
            )
    return "With many ranks stage 1 tends to 4 bytes per parameter, stage 3 to none: that is why it can hold models no card could."


@exercise(
    "First join the shards into one list, then drop what was only padding: all beyond `length`.",
    "Each new shard holds length / ranks values, rounded up; fill the last ones up with zeros.",
    "size = -(-length // ranks); pad the list with zeros to size * ranks; cut it every `size` values.",
)
def reshard(answer: Any) -> str:
    """``answer(shards, length, ranks)``.

    The flat buffer of ``length`` values cut anew into equal shards, padded with zeros.
    """
    given = result(answer, [[1, 2, 3, 4], [5, 6, 7, 0]], 7, 3)
    if given == [[1, 2, 3], [4, 5, 6], [7]]:
        raise Mistake(
            "the last shard is shorter than the others; ranks exchange pieces of equal size, so fill it up with zeros."
        )
    if given == [[1, 2, 3], [4, 5, 6], [7, 0]]:
        raise Mistake("the old padding was taken for a value, and the last shard is too short.")
    if given == [[1, 4, 7], [2, 5, 0], [3, 6, 0]]:
        raise Mistake("the values are dealt out like cards; a shard is one unbroken piece of the buffer.")
    if not isinstance(given, list) or len(given) != 3:
        raise Mistake("return a list with one shard for each of the new ranks.")
    if result(answer, [[1, 2, 0], [3, 0, 0]], 2, 1) == [[1, 2, 0, 3, 0, 0]]:
        raise Mistake("the old padding is still there; it belongs to the old number of ranks, not to the model.")
    if given != [[1, 2, 3], [4, 5, 6], [7, 0, 0]] or result(answer, [[1, 2], [3, 4], [5, 0]], 5, 1) != [
        [1, 2, 3, 4, 5]
    ]:
        raise Mistake(
            f"[[1, 2, 3, 4], [5, 6, 7, 0]], of which 7 values are real, became {given} for three ranks; and one rank must get them all."
        )
    if result(answer, [[1, 2, 3], [4, 5, 0]], 5, 4) != [[1, 2], [3, 4], [5, 0], [0, 0]]:
        raise Mistake("five values on four ranks: shards of two, and the last rank holds padding only.")
    return "That is what a universal checkpoint does, for every tensor of the model and the optimizer."


@exercise(
    "What would one process compute that sees all label tokens at once?",
    "Add all losses up, whatever micro-batch they are in, and divide once.",
    "Divide by the number of label tokens of the whole batch: `sum(len(losses) for losses in micro_batches)`.",
)
def accumulated_loss(answer: Any) -> str:
    """``answer(micro_batches)``: the loss of a whole batch from the losses of the label tokens of each micro-batch."""
    loss = number(result(answer, [[1.0, 1.0, 1.0, 1.0], [4.0]]))
    named = (
        (
            5,
            "you add up averages: with each further micro-batch the loss grows. This is what T5's own loss does under the Trainer.",
        ),
        (
            2.5,
            "you average averages: the single token of the second micro-batch counts as much as the four of the first.",
        ),
        (8, "that is the sum; divide by the number of label tokens of the whole batch."),
        (4, "you divide by the number of micro-batches; divide by the number of label tokens."),
    )
    name_mistake(loss, named)
    if not near(loss, 1.6) or not near(number(result(answer, [[2.0], [1.0, 3.0], [2.0, 2.0]])), 2.0):
        raise Mistake(f"four tokens of loss 1 and one of loss 4 average to 1.6, and you got {loss:g}.")
    return "Micro-batches, ranks, or one big batch: the same loss, so the same gradient and the same model."


@exercise(
    "Ask the stages in order, from 0 up, and stop at the first that fits.",
    "A stage fits when its bytes per rank are no more than `memory`; use your own `zero_bytes` or the course's `expected_bytes`.",
    "`for stage in range(4): if sum(expected_bytes(parameters, stage, ranks, bf16=True).values()) <= memory: return stage`, and None after the loop.",
)
def lowest_stage(answer: Any) -> str:
    """``answer(parameters, ranks, memory)``.

    The lowest ZeRO stage of a bf16 training that fits into the bytes of a rank, or None.
    """
    # 16, 10, 9 and 8 bytes per parameter on two ranks
    given = [result(answer, 1000, 2, memory, may_be_none=True) for memory in (20000, 12000, 9500, 8500, 5000)]
    if given[:4] == [3, 3, 3, 3]:
        raise Mistake("you take the highest stage that fits; each stage costs messages, so take the lowest.")
    if given[4] is not None:
        raise Mistake(
            "5 bytes per parameter are too few for every stage on two ranks: return None, then offloading or more ranks must help."
        )
    if result(answer, 1000, 2, 16000, may_be_none=True) != 0:
        raise Mistake("16,000 bytes are just enough for stage 0: what fits exactly, fits.")
    if given[0] != 0:
        raise Mistake("20,000 bytes hold the whole training of 1,000 parameters: nothing need be sharded.")
    if given[1] == 0:
        raise Mistake(
            "12,000 bytes were given for 1,000 parameters, and stage 0 needs 16,000: count the master copy and both moments."
        )
    if given[:4] != [0, 1, 2, 3]:
        raise Mistake(
            f"for 20, 12, 9.5 and 8.5 bytes per parameter on two ranks the stages are 0, 1, 2 and 3; you got {given[:4]}. `memory` is per rank."
        )
    return "Plan with the bytes, then leave room for the activations, which no stage shards."
