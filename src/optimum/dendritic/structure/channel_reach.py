"""Who reaches whom: the passes of a tracer that tell which channel of a producer reaches which input of a consumer.

The samples of one pass serve several producers at once. In the first passes sample `p` marks all channels of producer
`p`, which tells who reaches whom; producers that reach no common module then share the samples that mark their code
words (`functional.codes`). Where several channels arrive together (all channels of a query reach a whole head), further
samples mark each channel, or each small block of channels, alone. Of the many producers that write to one residual
stream only the first is read in full; a few samples show that the others reach the same.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set

import torch
from jaxtyping import Bool
from torch import Tensor

from ..functional.codes import Reach, candidates, code, decode, reach_of
from .marks import Tangled
from .nan_tracing import Seen, Tracer, Words

EXACT = 256  # up to so many channels each is marked alone, where several arrive together
BLOCK = 8  # beyond, so many together: the heads of wide layers are multiples of it
SAMPLES = 64  # largest batch of one tracing pass
BYTES = 2**25  # largest activation of one tracing pass, where a batch of `FEWEST` has no larger one
FEWEST = 8
PROOFS = 4  # samples that show whether a producer reaches what another one reaches

Touched = Mapping[str, Set[str]]
Reached = dict[str, Reach]


def channel_reach(tracer: Tracer, producers: Sequence[str]) -> tuple[dict[str, Reached], dict[str, Exception]]:
    """Who reaches what.

    Args:
        tracer: whose `positions` are known.
        producers: names of layers and tables, and keys of axes.

    Returns:
        For each producer what each module is reached by, by its name; and the error of each producer whose marks could
        not be read. Of the model's outputs (`OUTPUTS`) and of modules whose inputs are not told apart it says alone
        that they are reached, by all channels.
    """
    lone = [name for name in producers if name in tracer.lone]
    batched = [name for name in producers if name not in tracer.lone]
    samples = min(SAMPLES, max(FEWEST, BYTES // max(1, tracer.largest_activation)))
    found, failed = _reach(tracer, batched, samples)
    unspread = [name for name in failed if name in tracer.axes]  # a model may expand what begins with a batch of one
    alone, failed_alone = _reach(tracer, [*lone, *unspread], 1)
    failed = {name: error for name, error in failed.items() if name not in unspread} | failed_alone
    found |= alone
    return {name: found[name] for name in producers if name in found}, failed


def _reach(tracer: Tracer, producers: Sequence[str], samples: int) -> tuple[dict[str, Reached], dict[str, Exception]]:
    """The same, in passes of at most so many samples."""
    widths = tracer.widths
    everything = {name: torch.ones(1, widths[name], dtype=torch.bool) for name in producers}
    census, failed = _read(tracer, everything, None, samples)
    told = {*tracer.layers, *tracer.followers.values(), *tracer.norms.values()}
    touched = {name: seen.keys() & told for name, seen in census.items()}
    leads = _leads(touched, widths)
    found, unread = _decoded(tracer, [name for name in touched if name not in leads], touched, samples)
    alike = _alike(tracer, {name: found[lead] for name, lead in leads.items() if lead in found}, touched, samples)
    others, unread_others = _decoded(tracer, [name for name in leads if name not in alike], touched, samples)
    found |= alike | others
    failed |= unread | unread_others
    for name, seen in census.items():
        if name in found:
            found[name] |= {sink: _all(widths[name]) for sink in seen.keys() - told}
    return {name: found[name] for name in producers if name in found}, failed


def _leads(touched: Touched, widths: Mapping[str, int]) -> dict[str, str]:
    """For each producer one of equally many channels that may tell what it reaches, because it reaches all those
    modules, too; leads have none. So the writers of a residual stream are told by its first one."""
    leads: dict[int, list[str]] = defaultdict(list)
    found: dict[str, str] = {}
    for name in sorted(touched, key=lambda name: -len(touched[name])):
        known = leads[widths[name]]
        lead = next((lead for lead in known if touched[name] <= touched[lead]), None)
        if lead is None:
            known.append(name)
        elif touched[name]:
            found[name] = lead
    return found


def _alike(tracer: Tracer, leads: Mapping[str, Reached], touched: Touched, samples: int) -> dict[str, Reached]:
    """Those producers that reach the same inputs by the same channels as their leads do: a few samples that mark a
    random half of the channels show exactly what follows from that.

    Args:
        leads: what the lead of each producer reaches.
    """
    generator = torch.Generator().manual_seed(0)
    words = {name: torch.rand(PROOFS, tracer.widths[name], generator=generator) < 0.5 for name in leads}
    seen, _ = _read(tracer, words, touched, samples)
    same: dict[str, Reached] = {}
    for name, marks in seen.items():
        reached = {module: leads[name][module] for module in touched[name] if module in leads[name]}
        expected = {module: reach.spread(words[name]) for module, reach in reached.items()}
        if reached.keys() == touched[name] and all(
            torch.equal(expected[m], marks.get(m, torch.zeros_like(expected[m]))) for m in expected
        ):
            same[name] = reached
    return same


def _decoded(
    tracer: Tracer, producers: Sequence[str], touched: Touched, samples: int
) -> tuple[dict[str, Reached], dict[str, Exception]]:
    """What the code words of the channels show."""
    widths = tracer.widths
    words = {name: code(widths[name]) for name in producers if touched[name]}
    seen, unread = _read(tracer, words, touched, samples)
    found: dict[str, Reached] = {name: {} for name in producers}
    unclear: dict[str, dict[str, Tensor]] = {}  # producer -> module -> its inputs that several channels reach
    for name, marks in seen.items():
        for module, columns in marks.items():
            channel, several = decode(columns, widths[name])
            single = (channel >= 0).nonzero().flatten()
            found[name][module] = reach_of(channel[single], single, columns.shape[1])
            if several.any():
                unclear.setdefault(name, {})[module] = several.nonzero().flatten()
    tangled = {n: Tangled("several of its channels arrive together") for n in unclear if n not in tracer.layers}
    unclear = {name: modules for name, modules in unclear.items() if name not in tangled}
    blocks = {name: _blocks(widths[name]) for name in unclear}
    alone, unresolved = _read(tracer, blocks, touched, samples)
    for name, marks in alone.items():
        size = widths[name] // len(blocks[name])
        for module, several in unclear[name].items():
            pairs = candidates(seen[name][module][:, several], words[name])
            if module in marks:
                pairs &= marks[module][:, several].repeat_interleave(size, 0)
            channels, columns = pairs.nonzero().unbind(1)
            found[name][module] |= reach_of(channels, several[columns], found[name][module].width)
    failed = unread | unresolved | tangled
    return {name: reached for name, reached in found.items() if name not in failed}, failed


def _all(channels: int) -> Reach:
    """That all channels reach the one input."""
    return Reach(torch.arange(channels), torch.zeros(channels, dtype=torch.int64), width=1)


def _read(
    tracer: Tracer, words: Words, touched: Touched | None, samples: int
) -> tuple[dict[str, Seen], dict[str, Exception]]:
    """What each producer's samples show at the modules that it reaches, and the errors of those that cannot run.

    A model may fail in any way on NaN, so producers that fail together are tried in halves.

    Args:
        words: the samples of each producer.
        touched: the modules that each producer reaches; None where that is what is asked.
        samples: the largest batch of one pass.
    """
    if not words:
        return {}, {}
    try:
        return _shared(tracer, words, touched, samples), {}
    except Exception as error:
        names = list(words)
        if len(names) == 1:
            return {}, {names[0]: error}
        halves = [{name: words[name] for name in part} for part in (names[::2], names[1::2])]
        (first, errors), (second, more) = (_read(tracer, half, touched, samples) for half in halves)
        return first | second, errors | more


def _shared(tracer: Tracer, words: Words, touched: Touched | None, largest: int) -> dict[str, Seen]:
    """The same, where nothing fails: producers that reach no common module have samples in common."""
    first, samples = _placed(words, touched)
    found: dict[str, Seen] = {name: {} for name in words}
    for start in range(0, samples, largest):
        length, patterns, own = min(largest, samples - start), {}, {}
        for name, word in words.items():
            low, high = max(first[name], start), min(first[name] + len(word), start + length)
            if low < high:
                here, there = slice(low - start, high - start), slice(low - first[name], high - first[name])
                patterns[name] = torch.zeros(length, word.shape[1], dtype=torch.bool)
                patterns[name][here] = word[there]
                own[name] = (here, there)
        seen = tracer.mark(patterns, length)
        for name, (here, there) in own.items():
            for module, columns in seen.items():
                if columns[here].any() if touched is None else module in touched[name]:
                    empty = torch.zeros(len(words[name]), columns.shape[1], dtype=torch.bool)
                    found[name].setdefault(module, empty)[there] = columns[here]
    return found


def _placed(words: Words, touched: Touched | None) -> tuple[dict[str, int], int]:
    """The first of the samples of each producer, and how many there are in all."""
    lanes: list[tuple[set[str], list[str]]] = []
    for name in words:
        modules = {name} if touched is None else touched[name]
        lane = next((lane for lane in lanes if touched is not None and lane[0].isdisjoint(modules)), None)
        if lane is None:
            lanes.append(lane := (set(), []))
        lane[0].update(modules)
        lane[1].append(name)
    first, samples = {}, 0
    for _, names in lanes:
        first |= dict.fromkeys(names, samples)
        samples += max(len(words[name]) for name in names)
    return first, samples


def _blocks(channels: int) -> Bool[Tensor, "blocks channels"]:
    """Each channel alone, or of a wide layer each small block."""
    size = 1 if channels <= EXACT else math.gcd(channels, BLOCK)
    return torch.eye(channels // size, dtype=torch.bool).repeat_interleave(size, 1)
