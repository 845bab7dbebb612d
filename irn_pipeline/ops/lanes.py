"""Vector instructions for compiled loops over a few channels, which the compiler would leave scalar.

The functions work in compiled code only. `count` and `lanes` must be numbers that are known when it is compiled;
all arrays are contiguous: fields and values (rows, lanes) float32, corners (N, count) uint32, weights (N, count)
float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_FLOAT = ir.FloatType()


def _typed(generate: Any, *arguments: Any) -> Any:
    """Signature and generator; none for numbers whose value is not known, upon which numba offers the others."""
    if not isinstance(arguments[-1], types.IntegerLiteral):
        return None
    return types.void(*arguments), generate


def _generate_gather(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    lanes = signature.args[7].literal_value
    total = ir.Constant(ir.VectorType(_FLOAT, lanes), [0.0] * lanes)
    for address, weight in _corners(context, builder, signature, arguments):
        total = builder.fadd(total, builder.fmul(weight, builder.load(address, align=4)))
    target = _row(context, builder, signature.args[0], arguments[0], arguments[1], lanes)
    builder.store(total, target, align=4)
    return context.get_dummy_value()


def _generate_splat(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    lanes = signature.args[7].literal_value
    source = _row(context, builder, signature.args[0], arguments[0], arguments[1], lanes)
    value = builder.load(source, align=4)
    for address, weight in _corners(context, builder, signature, arguments):
        added = builder.fadd(builder.load(address, align=4), builder.fmul(weight, value))
        builder.store(added, address, align=4)
    return context.get_dummy_value()


def _generate_blur(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    field, row, following, target, before, _ = arguments
    lanes = signature.args[5].literal_value
    own, other, written = (
        _row(context, builder, signature.args[0], field, at, lanes) for at in (row, following, target)
    )
    memory = _row(context, builder, signature.args[4], before, ir.Constant(row.type, 0), lanes)
    here = builder.load(own, align=4)
    beside = builder.fadd(builder.load(memory, align=4), builder.load(other, align=4))
    half = ir.Constant(here.type, [0.5] * lanes)
    builder.store(builder.fadd(here, builder.fmul(half, beside)), written, align=4)
    builder.store(here, memory, align=4)
    return context.get_dummy_value()


def _corners(context: Any, builder: Any, signature: Any, arguments: Any) -> Iterator[tuple[Any, Any]]:
    """Field address and repeated weight of each corner of a point, one after the other."""
    _, _, field, corners, weights, point, *_ = arguments
    count, lanes = (literal.literal_value for literal in signature.args[6:])
    for corner in range(count):
        index = builder.add(
            builder.mul(point, ir.Constant(point.type, count)), ir.Constant(point.type, corner)
        )
        row = builder.zext(_number(context, builder, signature.args[3], corners, index), point.type)
        weight = _number(context, builder, signature.args[4], weights, index)
        vector = ir.Constant(ir.VectorType(_FLOAT, lanes), ir.Undefined)
        for lane in range(lanes):
            vector = builder.insert_element(vector, weight, ir.Constant(ir.IntType(32), lane))
        yield _row(context, builder, signature.args[2], field, row, lanes), vector


def _row(context: Any, builder: Any, array_type: Any, array: Any, row: Any, lanes: int) -> Any:
    """Address of a row, as one vector."""
    view = context.make_array(array_type)(context, builder, array)
    numbers = builder.gep(view.data, [builder.mul(row, ir.Constant(row.type, lanes))])
    return builder.bitcast(numbers, ir.VectorType(_FLOAT, lanes).as_pointer())


def _number(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Number at a flat index."""
    view = context.make_array(array_type)(context, builder, array)
    return builder.load(builder.gep(view.data, [index]))


def _gather(
    typing_context: Any,
    values: Any,
    row: Any,
    field: Any,
    corners: Any,
    weights: Any,
    point: Any,
    count: Any,
    lanes: Any,
) -> Any:
    return _typed(_generate_gather, values, types.intp, field, corners, weights, types.intp, count, lanes)


def _splat(
    typing_context: Any,
    values: Any,
    row: Any,
    field: Any,
    corners: Any,
    weights: Any,
    point: Any,
    count: Any,
    lanes: Any,
) -> Any:
    return _typed(_generate_splat, values, types.intp, field, corners, weights, types.intp, count, lanes)


def _blur(
    typing_context: Any, field: Any, row: Any, following: Any, target: Any, before: Any, lanes: Any
) -> Any:
    return _typed(_generate_blur, field, types.intp, types.intp, types.intp, before, lanes)


gather_lanes: Callable[..., None] = intrinsic(_gather)
"""gather_lanes(values, row, field, corners, weights, point, count, lanes):
values[row] = sum over j of weights[point, j] * field[corners[point, j]]."""
splat_lanes: Callable[..., None] = intrinsic(_splat)
"""splat_lanes(values, row, field, corners, weights, point, count, lanes):
field[corners[point, j]] += weights[point, j] * values[row] for every j."""
blur_lanes: Callable[..., None] = intrinsic(_blur)
"""blur_lanes(field, row, following, target, before, lanes), one step along a chain:
field[target] = field[row] + (before[0] + field[following]) / 2, and before[0] takes what field[row] was."""
