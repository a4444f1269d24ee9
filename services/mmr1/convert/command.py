"""`mmr1 data convert FORMAT FILE --images DIR --out DIR`: the command line of the converters, and what they report.

It knows each format's options and none of its keys.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mmr1.convert import clevr, coco, pages, pixmo, refcoco
from mmr1.convert.annotations import Account, Row
from mmr1.convert.output import IMAGES, write_rows
from mmr1.convert.pictures import Pictures
from mmr1.errors import ConfigurationError
from mmr1.remote_images import RemoteRoot, local_or_remote

# A word or so in braces. Those of JSON and of LaTeX's commands, as \boxed{answer}, are words of the question.
_PLACEHOLDER = re.compile(r"(\\[A-Za-z]+)?\{([\w .-]+)\}")


@dataclass(frozen=True, slots=True)
class _Format:
    help: str
    form: str  # of its file, in words
    add_options: Callable[[argparse.ArgumentParser], None]
    rows: Callable[[argparse.Namespace, Pictures, Account], Iterator[Row]]


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Give `mmr1 data convert` its formats, each with its options."""
    formats = parser.add_subparsers(dest="format", required=True, parser_class=type(parser))
    for name, format_ in _FORMATS.items():
        one = formats.add_parser(name, help=format_.help, description=format_.help)
        one.add_argument("file", type=Path, metavar="FILE", help=format_.form)
        one.add_argument(
            "--images", required=True, metavar="DIR", help="the folder, or the URL, of the images it names"
        )
        one.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the dataset goes")
        one.add_argument("--name", default="train", help="of the file in it; default: train, for train.json")
        one.add_argument("--images-stay", action="store_true", help="do not put the images into DIR; see image_root")
        format_.add_options(one)


def run(arguments: argparse.Namespace) -> int:
    """Convert, and report. Returns the exit code.

    Raises:
        ConfigurationError: the file is not of the format, nothing in it can be converted, or nothing can be written.
    """
    root = local_or_remote(arguments.images)
    if isinstance(root, Path) and not root.is_dir():
        raise ConfigurationError(f"--images {root} is not a folder; give the one that holds the images")
    placed = None if arguments.images_stay or isinstance(root, RemoteRoot) else root
    format_ = _FORMATS[arguments.format]
    account = Account(arguments.file, lambda line: print(line, file=sys.stderr))
    pictures = Pictures(root)
    found = format_.rows(arguments, pictures, account)
    rows = ({**row, "image": pictures.relative(row["image"])} for row in found)
    target = arguments.out / f"{arguments.name}.json"
    try:
        num_rows, num_images = write_rows(target, rows, placed)
    except OSError as error:
        raise ConfigurationError(
            f"{arguments.out} cannot be written ({error.strerror}); choose another --out"
        ) from None
    reasons = [f"{count} left out: {reason}" for reason, count in account.left_out.most_common()]
    if not num_rows:
        raise ConfigurationError(
            f"{arguments.file}: nothing was converted ({'; '.join(reasons) or 'it is empty'}); see whether it is "
            f"{format_.form}, and whether its images are below --images {root}"
        )
    print(f"{target}: {_counted(num_rows, 'problem')} on {_counted(num_images, 'image')}")
    for reason in reasons:
        print(f"  {reason}")
    if account.num_bad:
        print(f"  {_counted(account.num_bad, 'bad annotation')}, named on standard error")
    if placed is None:
        print(f"  the images stay where they are: set image_root: {root}")
    else:
        print(f"  the images are in {arguments.out / IMAGES}")
    return 0


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _question(*names: str) -> Callable[[str], str]:
    """Of --question: a name in braces that stands for nothing would be asked as it is written."""

    def checked(text: str) -> str:
        unknown = [name for command, name in _PLACEHOLDER.findall(text) if not command and name not in names]
        if unknown:
            there = " and ".join(f"{{{name}}}" for name in names)
            remedy = f"only {there} stands for anything" if names else "nothing in braces stands for anything here"
            raise argparse.ArgumentTypeError(f"{{{unknown[0]}}} is not known; {remedy}")
        return text

    return checked


def _coco_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--question",
        type=_question("categories"),
        default=coco.QUESTION,
        help="{categories} stands for their names; default: %(default)s",
    )
    parser.add_argument(
        "--crowds",
        choices=["leave-out", "ignore", "keep"],
        default="leave-out",
        help="leave out an image with a crowd (default), ignore what is found in the crowd's box, or keep that as an "
        "object",
    )
    parser.add_argument(
        "--empty", choices=["keep", "leave-out"], default="keep", help="images without objects; default: %(default)s"
    )
    parser.add_argument("--categories", default="", metavar="A,B", help="only these, by name; default: all")


def _coco(arguments: argparse.Namespace, pictures: Pictures, account: Account) -> Iterator[Row]:
    categories = tuple(name.strip() for name in arguments.categories.split(",") if name.strip())
    choices = coco.Choices(arguments.question, arguments.crowds, arguments.empty == "keep", categories)
    return coco.problems(arguments.file, pictures, choices, account)


def _refcoco_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--question",
        type=_question("expression"),
        default=refcoco.QUESTION,
        help="{expression} stands for what to find; default: %(default)s",
    )
    parser.add_argument("--instances", type=Path, metavar="FILE", help=f"of refs: {refcoco.INSTANCES}")
    parser.add_argument("--split", help="of refs: train, val, testA, testB or test; default: all")


def _refcoco(arguments: argparse.Namespace, pictures: Pictures, account: Account) -> Iterator[Row]:
    choices = refcoco.Choices(arguments.question, arguments.split, arguments.instances)
    return refcoco.problems(arguments.file, pictures, choices, account)


def _pixmo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--question",
        type=_question("label"),
        default=pixmo.QUESTION,
        help="{label} stands for what to count; default: %(default)s",
    )


def _clevr_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--question", type=_question(), default=clevr.QUESTION, help="of a scene; default: %(default)s")


def _pages_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--question", type=_question(), help="asked instead of the file's own words")


_FORMATS = {
    "coco": _Format("detection from COCO's instances", coco.FORM, _coco_options, _coco),
    "refcoco": _Format("grounding from RefCOCO, RefCOCO+ and RefCOCOg", refcoco.FORM, _refcoco_options, _refcoco),
    "pixmo-count": _Format(
        "counting from PixMo-Count",
        pixmo.FORM,
        _pixmo_options,
        lambda given, pictures, account: pixmo.problems(given.file, pictures, given.question, account),
    ),
    "clevr": _Format(
        "counting from CLEVR's and CLEVR-CoGenT's questions or scenes",
        clevr.FORM,
        _clevr_options,
        lambda given, pictures, account: clevr.problems(given.file, pictures, given.question, account),
    ),
    "pages": _Format(
        "OCR from pages as Fox has them",
        pages.FORM,
        _pages_options,
        lambda given, pictures, account: pages.problems(given.file, pictures, given.question, account),
    ),
}


__all__ = ["add_parser", "run"]
