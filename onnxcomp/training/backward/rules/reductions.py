"""Derivatives of reductions and of softmax."""

from __future__ import annotations

from onnxcomp.training.backward.rule import Adjoints, At, NoRuleError, rule
from onnxcomp.training.backward.values import Symbol


def kept(at: At, value: Symbol) -> Symbol:
    """Something of the shape of the output with the reduced axes as ones, so that it is broadcast to the input."""
    axes = at.input(1)
    if at.attr("keepdims", 1) or axes is None:  # a scalar needs no axes
        return value
    return value.unsqueeze(axes)


def is_all_or_nothing(at: At) -> bool:
    """Whether no axes are named and the operator then hands its input on."""
    return at.input(1) is None and bool(at.attr("noop_with_empty_axes", 0))


@rule("ReduceSum")
def reduce_sum(at: At) -> Adjoints:
    return at.dy if is_all_or_nothing(at) else kept(at, at.dy).expand(at.shape(at.x))


@rule("ReduceMean")
def reduce_mean(at: At) -> Adjoints:
    if is_all_or_nothing(at):
        return at.dy
    count = (at.op("Size", at.x) / at.op("Size", at.y)).cast(at.dy.data_type)
    return (kept(at, at.dy) / count).expand(at.shape(at.x))


@rule("ReduceMax", "ReduceMin")
def reduce_extreme(at: At) -> Adjoints:
    """What ties shares the adjoint equally."""
    if is_all_or_nothing(at):
        return at.dy
    reached = at.x.equals(kept(at, at.y)).cast(at.dy.data_type)
    count = at.op("ReduceSum", reached, at.input(1), keepdims=1)
    return reached * (kept(at, at.dy) / count)


@rule("ReduceSumSquare")
def reduce_sum_square(at: At) -> Adjoints:
    return at.x * (kept(at, at.dy) * 2.0)


@rule("ReduceL1")
def reduce_l1(at: At) -> Adjoints:
    return at.op("Sign", at.x) * kept(at, at.dy)


@rule("ReduceL2")
def reduce_l2(at: At) -> Adjoints:
    """Zero has no direction: zero, as of the absolute value."""
    length = kept(at, at.y)
    return at.x * (kept(at, at.dy) / length).where(length > 0.0)


@rule("ReduceLogSum")
def reduce_log_sum(at: At) -> Adjoints:
    return (kept(at, at.dy) / at.op("Exp", kept(at, at.y))).expand(at.shape(at.x))


@rule("ReduceLogSumExp")
def reduce_log_sum_exp(at: At) -> Adjoints:
    return at.op("Exp", at.x - kept(at, at.y)) * kept(at, at.dy)


@rule("ReduceProd")
def reduce_prod(at: At) -> Adjoints:
    """The product of the others: where one is zero, it alone has one."""
    is_zero = at.x.equals(0.0)
    zeros = at.op("ReduceSum", is_zero.cast(at.x.data_type), at.input(1), keepdims=1)
    others = at.write.alike(1.0, at.x).where(is_zero, at.x)
    product = at.op("ReduceProd", others, at.input(1), keepdims=1)
    of_zero = product.where(zeros.equals(1.0)).expand(at.shape(at.x))
    slope = of_zero.where(is_zero, (product / others).where(zeros.equals(0.0)))
    return slope * kept(at, at.dy)


@rule("Softmax")
def softmax(at: At) -> Adjoints:
    weighted = at.dy * at.y
    return weighted - at.y * weighted.sum([int(at.attr("axis", -1))], keep=True)


@rule("LogSoftmax")
def log_softmax(at: At) -> Adjoints:
    return at.dy - at.op("Exp", at.y) * at.dy.sum([int(at.attr("axis", -1))], keep=True)


@rule("CumSum")
def cumsum(at: At) -> Adjoints:
    reverse = 1 - int(at.attr("reverse", 0))
    return at.op("CumSum", at.dy, at.needs(1), exclusive=int(at.attr("exclusive", 0)), reverse=reverse)


@rule("Einsum")
def einsum(at: At) -> Adjoints:
    """Each operand's term takes the output's place; what is summed in that operand alone is the same for all of it."""
    terms, output = _terms(at)
    found: list[Symbol] = []
    for place, term in enumerate(terms):
        others = [each for index, each in enumerate(terms) if index != place]
        present = set(output).union(*others)
        kept = "".join(letter for letter in term if letter in present)
        operands = [at.dy, *(each for index, each in enumerate(at.inputs) if index != place)]
        made = at.op("Einsum", *operands, equation=f"{','.join([output, *others])}->{kept}")
        if kept != term:
            made = made.unsqueeze([axis for axis, letter in enumerate(term) if letter not in present])
        found.append(made.expand(at.shape(at.needs(place))) if kept != term else made)
    return found


def _terms(at: At) -> tuple[list[str], str]:
    """The operands' letters and the output's; NoRuleError for what swapping terms does not differentiate."""
    equation = str(at.attr("equation")).replace(" ", "")
    left, arrow, output = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = "".join(terms)
        output = "".join(sorted(each for each in set(letters) if letters.count(each) == 1 and each != "."))
    if "..." in equation:
        terms, output = _without_dots(at, terms, output if arrow else f"...{output}")
    if any(len(set(term)) < len(term) for term in terms):
        raise NoRuleError("it takes a diagonal")
    return terms, output


def _without_dots(at: At, terms: list[str], output: str) -> tuple[list[str], str]:
    """Letters for the axes behind dots, the same from the right; NoRuleError where axes are broadcast."""
    free = [chr(code) for code in range(ord("A"), ord("Z") + 1) if chr(code) not in "".join([*terms, output])]
    counts = [
        at.rank(each) - len(term.replace("...", "")) if "..." in term else 0
        for each, term in zip(at.inputs, terms, strict=True)
    ]
    most = max(counts)
    for each, term, count in zip(at.inputs, terms, counts, strict=True):
        shape, start = at.write.shapes.shape(each.tensor) or (), term.find("...")
        if 0 < count < most or 1 in shape[start : start + count]:
            raise NoRuleError("axes behind its dots are broadcast")
    letters = "".join(free[:most])
    named = [term.replace("...", letters[most - count :]) for term, count in zip(terms, counts, strict=True)]
    return named, output.replace("...", letters)
