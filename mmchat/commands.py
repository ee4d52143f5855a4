"""What each command does. Heavy libraries are imported by the commands that need them: see `cli`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TextIO

from mmchat import translate
from mmchat.clip import Clip, is_clip, open_clip
from mmchat.geometry import open_image, outline, region_on

if TYPE_CHECKING:
    from mmchat.desk import Answer, Ask, Desk
    from mmchat.detectors import Found
    from mmchat.family import Engine
    from mmchat.geometry import Place

REPLAY = "replay"  # a name that --model takes beside those of models.toml: recorded answers, no model runs


def ask(options: argparse.Namespace, out: TextIO) -> int:
    from mmchat.desk import Ask, Limits, Turn, check_pictures
    from mmchat.export import answer_json

    if (options.heat is None) != (options.heat_save is None):
        raise ValueError("A heat map needs both --heat KIND and --heat-save OUT.png: give the other one too.")
    for path in (options.save, options.heat_save):
        if path is not None:
            check_target(path)
    image = open_clip(options.image) if is_clip(options.image) else open_image(options.image)
    if isinstance(image, Clip) and (options.region or options.save or options.heat):
        raise ValueError(f"{options.image} is no picture: leave out --region, --save and --heat.")
    given = (image, *map(open_image, options.picture), *map(open_clip, options.clip))
    seconds = next((one.seconds for one in reversed(given) if isinstance(one, Clip)), None)
    sizes = tuple(one.size for one in given[: 1 + len(options.picture)])
    drawn = tuple(region_on(region, sizes, number) for number, region in enumerate(options.region, 1))
    turn = Turn("user", options.text, drawn, images=tuple(range(len(given))))
    question = Ask(given, (turn,), options.task, Limits.of_seed(options.seed))
    with opened(options.model, options.precision, options.device, options.context) as (desk, name):
        check_task(desk, options.task)
        check_pictures(desk.engine.family, len(sizes))
        answer = spoken(desk, question, None if options.json else out)
        if options.json:
            give(answer_json(answer, given[answer.shown].size, name, desk.engine.precision, seconds, len(given)), out)
        else:
            tell(answer, given[answer.shown].size, out, seconds)
        if options.save is not None:
            from mmchat import paint  # drawing libraries take two seconds

            on = given[answer.shown]
            save_png(paint.answer(image if isinstance(on, Clip) else on, answer), options.save)
        if options.heat is not None:
            painted = desk.heat(question, answer, options.heat, drawn[0] if drawn else None)
            save_png(painted, options.heat_save)
            print(painted.info.get("note", ""), file=sys.stderr)
    return 0


def spoken(desk: Desk, question: Ask, stream: TextIO | None) -> Answer:
    """The whole answer; its words go to `stream` as they come (what is shown of a text only ever grows)."""
    answer, shown = None, 0
    for answer in desk.answer(question):
        if stream is not None and len(answer.text) > shown:
            print(answer.text[shown:], end="", file=stream, flush=True)
            shown = len(answer.text)
    assert answer is not None, "a desk gives at least one answer"
    return answer


def tell(answer: Answer, size: tuple[int, int], out: TextIO, seconds: float | None = None) -> None:
    """The places and stretches of time below the words; hints go to standard error. seconds: length of the clip."""
    print(file=out)
    for span in answer.spans:
        phrase = " ".join(answer.text[span.start : span.end].split())
        for place in span.places:
            box = ",".join(f"{number:.0f}" for number in outline(place).pixels(size))
            print(f"  {phrase or 'here'}: {box}", file=out)
    for moment in answer.moments if seconds is not None else ():
        phrase = " ".join(answer.text[moment.start : moment.end].split())
        first, last = moment.within(seconds)
        print(f"  {phrase or 'here'}: {first:.2f} s to {last:.2f} s", file=out)
    for picture in answer.pictures:
        print(f"  {picture.path}", file=out)
    for name, value in answer.notes:
        if name == "hint":
            print(value, file=sys.stderr)


def detect(options: argparse.Namespace, out: TextIO) -> int:
    from mmchat import detectors
    from mmchat.export import answer_json

    if options.save is not None:
        check_target(options.save)
    image = open_image(options.image)
    entry = detectors.named(options.model, "boxes")
    cutter = None if options.segment is None else detectors.named(options.segment, "masks")
    for one in (entry, cutter):
        if one is not None and (lacks := detectors.missing(one)):
            raise ValueError(lacks)
    detector = detectors.opened(entry.folder, entry.family, options.device)
    found = detector(image, options.phrase, options.threshold)
    places: list[Place] = [one.box for one in found]
    if cutter is not None:
        from mmchat.detectors.sam import Prompt

        del detector  # two need not be in memory at once
        cut = detectors.opened(cutter.folder, cutter.family, options.device)
        masks = [one.mask for one in cut(image, [Prompt(box=one.box) for one in found])]
        places = [mask if mask.box.area > 0 else one.box for mask, one in zip(masks, found, strict=True)]
    answer = listing(options.phrase, found, places)
    if options.json:
        give(answer_json(answer, image.size, entry.name, "fp32"), out)
    else:
        print(answer.text, file=out)
        for one, place in zip(found, places, strict=True):
            box = ",".join(f"{number:.0f}" for number in outline(place).pixels(image.size))
            print(f"  {one.phrase}: {box}  {one.score:.2f}", file=out)
        for _, hint in answer.notes:
            print(hint, file=sys.stderr)
    if options.save is not None:
        from mmchat import paint  # drawing libraries take two seconds

        save_png(paint.answer(image, answer), options.save)
    return 0


def listing(phrases: Sequence[str], found: Sequence[Found], places: Sequence[Place]) -> Answer:
    """What was found as an answer: its text lists the phrases, each with the places of what it found."""
    from mmchat.desk import Answer
    from mmchat.dialect import Span

    spans, scores, start = [], [], 0
    for number, phrase in enumerate(phrases):
        mine = [index for index, one in enumerate(found) if one.number == number]
        if mine:
            around = (start, start + len(phrase))
            spans.append(Span(*around, tuple(places[index] for index in mine), ((0, 0),) * len(mine)))
            scores.append(tuple(found[index].score for index in mine))
        start += len(phrase) + 2
    hints = () if found else (("hint", "Nothing was found: lower --threshold, or say it in other words."),)
    return Answer(", ".join(phrases), "", tuple(spans), tuple(scores), done=True, notes=hints)


def read(options: argparse.Namespace, out: TextIO) -> int:
    if options.list and options.markdown:
        from mmchat import versus  # supervision takes seconds

        print(translate.markdown(), versus.markdown(), sep="\n\n", file=out)
        return 0
    if options.list:
        print(translate.table(), file=out)
        return 0
    if options.dialect is None or options.size is None:
        raise ValueError("`read` needs a DIALECT and --size WxH: see `python -m mmchat read --list`.")
    candidates = None if options.candidates is None else loaded(options.candidates)
    if candidates is not None and not isinstance(candidates, list):
        raise ValueError(f"{options.candidates} must hold a list of [x0, y0, x1, y1] in pixels.")
    text = sys.stdin.buffer.read().decode("utf-8", "replace")
    text = text.rstrip("\r\n")  # a text that was typed or echoed ends with a line end of its own
    if options.inspect:
        give(translate.inspect_json(options.dialect, text, options.size, options.fit), out)
        return 0
    give(translate.read_json(options.dialect, text, options.size, options.fit, candidates), out)
    return 0


def write(options: argparse.Namespace, out: TextIO) -> int:
    if any(len(box) != 4 for box in options.box):
        raise ValueError("--box needs four numbers x0,y0,x1,y1 in pixels: add the missing ones.")
    print(translate.write_text(options.dialect, options.box, options.size, options.phrase, options.fit), file=out)
    return 0


def models(options: argparse.Namespace, out: TextIO) -> int:
    if options.record and not options.check:
        raise ValueError("--record needs --check NAME: say of which model the answer is recorded.")
    if options.check:
        return checked(options.check, options.record, out)
    if options.markdown:
        from mmchat import catalogue

        print(catalogue.markdown(), file=out)
        return 0
    from mmchat import doctor as house

    rows = [*house.models(), *house.finders()]
    if options.json:
        give(rows, out)
        return 0
    wide = max(len(row["name"]) for row in rows)
    for row in sorted(rows, key=lambda row: bool(row["missing"])):  # what can be opened stands first
        print(f"{row['name']:{wide}} {row['family']:15} {row['missing'] or 'ready'}", file=out)
        print(f"{'':{wide}} {row['title']}" + ("" if row["missing"] else f"; {row['folder']}"), file=out)
        if row["unverified"]:
            print(f"{'':{wide}} Not verified: {row['unverified']}", file=out)
    return 0


def checked(name: str, recorded: list[str] | None, out: TextIO) -> int:
    """Opens a model and checks it; with a picture and a question, their answer is what later checks compare with."""
    import os

    from mmchat import models as known
    from mmchat import selfcheck

    with opened(name, "auto") as (desk, name):
        folder = known.find(name).folder
        if recorded:
            picture, text = recorded
            open_image(picture)  # a sentence where there is none
            print(selfcheck.record(desk, folder, os.path.relpath(picture, folder), text), file=out)
        faults = self_check(desk, name)
        print(f"{name}: {'ok' if not faults else ' '.join(faults)}", file=out)
    return 2 if faults else 0


def fetch(options: argparse.Namespace, out: TextIO) -> int:
    import os

    from mmchat import detectors, models
    from mmchat.fetch import fetch as fetched

    entry = next((one for one in models.detectors() if one.name == options.name), None) or models.find(options.name)
    lacking = detectors.missing if entry.detector else models.missing
    if entry.detector:
        detectors.record(entry.family)  # its kind is judged before anything is fetched
    folders = fetched(entry, lambda line: print(line, file=sys.stderr), os.environ.get("HF_ENDPOINT"))
    if lacks := lacking(entry):
        raise ValueError(lacks)
    for folder in folders:
        print(folder, file=out)
    return 0


def save(options: argparse.Namespace, out: TextIO) -> int:
    from mmchat import models as known
    from mmchat.nets import archive, saving

    folder = known.find(options.name).folder
    if options.folder.exists():  # said before a large model is loaded
        raise ValueError(f"{options.folder} is there already: name a new folder.")
    with opened(options.name, options.precision, "cpu") as (desk, _):
        local = desk.engine
        words = archive.opened(folder)
        print(saving.save(local.model, local.config, options.folder, words, local.family.parts), file=out)
    return 0


def index(options: argparse.Namespace, out: TextIO) -> int:
    def tell(done: int, total: int, unreadable: int) -> None:
        lost = f", {unreadable} cannot be read" if unreadable else ""
        print(f"\r{done} of {total} pictures{lost}", end="", file=sys.stderr, flush=True)

    with opened(options.model, options.precision) as (desk, name):
        searching = getattr(desk.engine, "searching", None)
        if searching is None:
            raise ValueError(f"{name} does not answer with pictures: name a model that does with --model (FROMAGe).")
        try:
            made = searching.build(options.folder, tell)
        finally:
            print(file=sys.stderr)
        print(f"{len(made)} pictures in {searching.file}", file=out)
    return 0


def golden(options: argparse.Namespace, out: TextIO) -> int:
    from dataclasses import asdict

    from mmchat.golden import run
    from mmchat.golden.loading import layout

    if not options.folder.exists():
        raise ValueError(f"There is no folder {options.folder}: give one with recorded cases.")
    layout.set(options.layout)
    rows = run(options.folder)
    if options.json:
        give([asdict(row) for row in rows], out)
    else:
        for row in rows:
            error = "-" if row.error is None else f"{row.error:.3g}"
            state = {"ok": "ok", "fail": "FAIL", "skip": "skip", "differs": "differs"}[row.status]
            why = row.why if row.status != "ok" else ""
            print(f"{row.system:22} {row.case:36} {error:>10}  {state} {why}".rstrip(), file=out)
    return int(any(row.status == "fail" for row in rows))


def evaluate(options: argparse.Namespace, out: TextIO) -> int:
    from mmchat import evaluate as scores

    check_target(options.out)
    entries = scores.entries(options.folder)[: options.limit]
    with opened(options.model, options.precision) as (desk, name):
        print(f"{len(entries)} photographs, model {name}", file=sys.stderr)
        found = scores.predictions(desk, options.folder, entries, lambda line: print(line, file=sys.stderr))
    save_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", options.out)
    return 0


def doctor(options: argparse.Namespace, out: TextIO) -> int:
    from mmchat import doctor as house

    report = house.report()
    if options.json:
        give(report, out)
    else:
        print(house.as_text(report), file=out)
    return 0


def export(options: argparse.Namespace, out: TextIO) -> int:
    from mmchat import export as formats

    size = open_image(options.image).size
    data = loaded(options.answer)
    try:
        answer = formats.from_json(data, size)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise ValueError(f"{options.answer} is no answer of `ask --json` or `read`: give one of these.") from None
    named = (Path(options.image).name, size, answer)
    if options.format == "yolo":
        if options.out is None:
            raise ValueError("YOLO needs several files: give a folder with --out.")
        options.out.mkdir(parents=True, exist_ok=True)
        for name, text in formats.yolo([named]).items():
            save_text(text, options.out / name)
        return 0
    made = {
        "coco": lambda: as_json(formats.coco([named])), "voc": lambda: formats.voc(*named),
        "csv": lambda: formats.table([named]), "label-studio": lambda: as_json(formats.label_studio([named])),
        "json": lambda: as_json(formats.reading_json(answer, size)),
    }  # fmt: skip
    text = made[options.format]()
    if options.out is None:
        out.write(text)
    else:
        save_text(text, options.out)
    return 0


# What several commands need.


@contextmanager
def opened(
    name: str | None, precision: str, device: str | None = None, context: int | None = None
) -> Iterator[tuple[Desk, str]]:
    """A desk with the model of that name (None: the first of models.toml), and its name; closed at the end."""
    from mmchat import models
    from mmchat.desk import Desk

    name = REPLAY if name == REPLAY else models.find(name).name
    desk = Desk(engine(name, precision, device=device, context=context, progress=loading(sys.stderr)))
    try:
        yield desk, name
    finally:
        desk.close()


def loading(stream: TextIO, after: float = 1.0) -> Callable[[int, int], None] | None:
    """What tells on a terminal how much of the weights is read, where it takes more than `after` seconds; None for a
    stream that is none.
    """
    if not stream.isatty():
        return None
    begun, shown = monotonic(), -1

    def tell(done: int, total: int) -> None:
        nonlocal shown
        part = 100 * done // max(1, total)
        if part == shown or monotonic() - begun < after or (done >= total and shown < 0):
            return
        shown = part
        line = f"loading {'#' * (part // 5):.<20} {part:3} % of {total / 1e9:.1f} GB"
        # The line is gone when all is read: what is written behind it begins at the margin.
        stream.write(f"\r{line}" if done < total else f"\r{' ' * len(line)}\r")
        stream.flush()

    return tell


def engine(name: str, precision: str, **more: Any) -> Engine:
    """What runs the model of that name. more: device, context, progress, free as `LocalEngine.open` takes them."""
    if name == REPLAY:
        from mmchat.engines.replay import ReplayEngine

        return ReplayEngine()
    from mmchat.engines.local import LocalEngine  # torch and transformers take seconds

    return LocalEngine.named(name, precision, **more)


def switch(desk: Desk, name: str, precision: str, old: tuple[str, str], progress: Any = None) -> None:
    """Put the model `name` on the desk. Where the open one, `old` (name, precision), can stay until the new one is
    loaded, it does; where there is room for one only, it is closed first and opened again should the new one fail.

    ValueError where the new one cannot be opened or would fit in neither way: the open one stays.
    """
    from mmchat.nets import plan

    more = {} if progress is None else {"progress": progress}
    try:
        desk.open(engine(name, precision, **more))
        return
    except plan.NoRoom as error:
        room = error.free + getattr(desk.engine, "held", 0)
        if error.plan.total > room * plan.MARGIN:
            raise
    desk.switch(lambda: engine(name, precision, **more), lambda: engine(*old))


def self_check(desk: Desk, name: str) -> tuple[str, ...]:
    """Checks the model on the desk, `name` in models.toml, and notes what is wrong with it for the page's head."""
    from mmchat import models, selfcheck

    checked = desk.engine  # another one may be opened meanwhile
    faults = selfcheck.faults(desk, models.find(name).folder)
    for fault in faults:
        print(f"mmchat: self check of {name}: {fault}", file=sys.stderr)
    checked.faults = faults  # type: ignore[attr-defined]
    return faults


def check_task(desk: Desk, task: str | None) -> None:
    if task is not None:
        desk.engine.family.template.task(task)


def check_target(path: Path) -> None:
    """Before a model works for minutes: whether a file can be written there."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"{path} cannot be written: give a file in a folder that exists.")


def save_png(image: Any, path: Path) -> None:
    try:
        image.save(path, "PNG")
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}): choose another place.") from None


def save_text(text: str, path: Path) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}): choose another place.") from None


def loaded(path: Path) -> Any:
    """A JSON file's value."""
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): check the path.") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not JSON: check the file.") from None


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def give(value: Any, out: TextIO) -> None:
    out.write(as_json(value))
