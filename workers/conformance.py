"""The conformance suite: what any tokenizer plug-in must do, as a report of named checks.

`tokenmill tokenizers check NAME` prints it. The checks are in conformance_checks.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenmill.schemas.tokenizer import Checkpoint, Conforms, Fields, Tokenizer, UnitChecker
from tokenmill.workers.conformance_checks import CHECKS
from tokenmill.workers.conformance_subject import Broken, NotApplicable, Subject
from tokenmill.workers.registry import split_variant, tokenizer_class

Verdict = Literal["pass", "fail", "skip"]
_SHORT, _LONG = "a", "All happy families are alike. " * 4000


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    name: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    tokenizer: str
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return all(check.verdict != "fail" for check in self.checks)


def check(
    name: str,
    checkpoint: Checkpoint | str | None = None,
    config: Mapping[str, Any] | None = None,
    samples: Sequence[Fields] = (),
) -> Report:
    """Check the installed plug-in `name`. Raises TokenizerError where it cannot be loaded.

    samples: the user's own, beside the plug-in's examples.
    """
    if isinstance(checkpoint, str):
        checkpoint = Checkpoint(uri=checkpoint)
    name, config = split_variant(name, config or {})
    return check_class(tokenizer_class(name), checkpoint, config, samples)


def check_class(
    cls: type[Tokenizer],
    checkpoint: Checkpoint | None,
    config: Mapping[str, Any],
    samples: Sequence[Fields] = (),
) -> Report:
    """Check a plug-in that need not be registered (it must be importable by the child)."""
    described = cls.describe(config)
    tokenizer = cls.load(checkpoint, config)
    examples = list(cls.examples()) if isinstance(cls, Conforms) else []
    if described.modality == "text":
        role = described.fields[0]
        examples += [{role: ""}, {role: _SHORT}, {role: _LONG}]
    subject = Subject(
        cls=cls,
        checkpoint=checkpoint,
        config=config,
        samples=[*examples, *samples],
        tokenizer=tokenizer,
        described=described,
    )
    checks = tuple(_run(name, function, subject) for name, function in CHECKS.items())
    notes = tokenizer.notes() if isinstance(tokenizer, UnitChecker) else ()
    return Report(tokenizer=described.name, checks=checks, notes=notes)


def _run(name: str, function: Callable[[Subject], str], subject: Subject) -> Check:
    try:
        return Check(name=name, verdict="pass", detail=function(subject))
    except NotApplicable as reason:
        return Check(name=name, verdict="skip", detail=str(reason))
    except Broken as fault:
        return Check(name=name, verdict="fail", detail=str(fault))
    except Exception as error:  # noqa: BLE001 - a plug-in's crash is the verdict of this check
        return Check(name=name, verdict="fail", detail=f"{type(error).__name__}: {error}")
