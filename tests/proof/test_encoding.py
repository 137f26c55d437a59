"""The encoding says what the compiled policy says, on generated policies and requests.

Beside it stand encodings that are wrong on purpose, one for each thing that a policy's meaning rests
on. Each has to be caught by the same comparison: otherwise the comparison would show nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from authority.kernel.pattern_match import Pattern
from authority.kernel.requests import EFFECTS
from authority.proof import acting as acting_paths
from authority.proof import alphabets, automata, encoding, space
from authority.proof.acting import Acting
from authority.proof.automata import Atom, Automaton, either
from authority.proof.encoding import Encoded
from authority.proof.space import Cell

from .generated import disagreements


def test_every_effect_is_known_to_the_proof_engine() -> None:
    """A new effect has to be taught to `space` and `encoding`; until then nothing is proved of it."""
    for effect in EFFECTS:
        assert space.schemes_of(effect)
        assert effect in encoding._KNOWN


@pytest.mark.parametrize("seed", range(4))
def test_the_encoding_agrees_with_the_compiled_policy(seed: int) -> None:
    assert next(disagreements(seed, 60, 60), None) is None


def undecoded(patch: pytest.MonkeyPatch) -> None:
    right = encoding.atom
    patch.setattr(encoding, "atom", lambda kind, _decoded, parts: right(kind, False, parts))


def without(kind: str) -> Callable[[pytest.MonkeyPatch], None]:
    def wrong(patch: pytest.MonkeyPatch) -> None:
        right = encoding.atom
        patch.setattr(
            encoding,
            "atom",
            lambda k, d, parts: automata.FALSE if k == kind else right(k, d, parts),
        )

    return wrong


def unprotected(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(encoding, "_folders", lambda _paths: frozenset())


def one_file_is_enough(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: Encoded, cell: Cell, pick: Any) -> automata.Formula:
        return either(*(self.find(pick(layer), cell) for layer in self.policy.layers))

    patch.setattr(Encoded, "_all_say", wrong)


def no_file_abstains(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: Encoded, cell: Cell, pick: Any) -> automata.Formula:
        return encoding.both(*(self.find(pick(layer), cell) for layer in self.policy.layers))

    patch.setattr(Encoded, "_all_say", wrong)


def cell_covers(changed: Callable[[Cell, Pattern], bool]) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(Cell, "covered", changed)


def _place(cell: Cell, p: Pattern) -> bool:
    return cell.scheme in p.schemes and p.port in (0, cell.port) and p.covers_host(cell.host)


any_query = cell_covers(lambda c, p: _place(c, p) and (p.verbs is None or c.verb in p.verbs))
any_verb = cell_covers(lambda c, p: _place(c, p) and p.query in ("#any", c.query))
any_port = cell_covers(
    lambda c, p: c.scheme in p.schemes and p.covers_host(c.host) and p.admits(c.verb, c.query)
)


def stars_stand_for_something(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Automaton, "_after", lambda _self, rule, part: iter([(rule, part)]))


def only_the_first_rule(patch: pytest.MonkeyPatch) -> None:
    right = encoding.atom
    patch.setattr(
        encoding, "atom", lambda k, d, parts: right(k, d, frozenset(sorted(parts, key=repr)[:1]))
    )


def denials_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(encoding, "negated", lambda _formula: automata.TRUE)


def secrets_without_release_go_anywhere(patch: pytest.MonkeyPatch) -> None:
    right = Encoded.releases

    def wrong(self: Encoded, secret: str, cell: Cell) -> automata.Formula:
        if any(secret in layer.release for layer in self.policy.layers):
            return right(self, secret, cell)
        return automata.TRUE

    patch.setattr(Encoded, "releases", wrong)


def no_host_that_nobody_names(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(space, "_hosts", lambda named: sorted(set(named) - {""}))


def no_encoded_slash_in_the_space(patch: pytest.MonkeyPatch) -> None:
    right = alphabets.Paths._row

    def wrong(self: alphabets.Paths, state: int) -> tuple[int, dict[int, int]]:
        default, special = right(self, state)
        return default, {**special, alphabets.URL.by_raw[b"%2F"]: alphabets.DEAD}

    patch.setattr(alphabets.Paths, "_row", wrong)


def accepting_too_early(patch: pytest.MonkeyPatch) -> None:
    right = Automaton._full
    patch.setattr(
        Automaton,
        "_full",
        lambda self, places: (
            right(self, places)
            or any(type(at) is automata._Inside and at.offset < 0 for at in places)
        ),
    )


def acting(**changes: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """The question about paths that act later, asked otherwise."""

    def wrong(patch: pytest.MonkeyPatch) -> None:
        def asked(effect: str, but: str, at: int) -> Acting:
            return Acting(**{"effect": effect, "but": but, "at": at, **changes})

        patch.setattr(encoding, "Acting", asked)

    return wrong


def names_with_their_case(patch: pytest.MonkeyPatch) -> None:
    right = acting_paths._plain
    patch.setattr(
        acting_paths,
        "_next",
        lambda name, byte: right(name, chr(byte)) if 0 < byte < 128 else acting_paths._other(name),
    )


def filled_folders_are_like_any_other(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(acting_paths, "FILLED", acting_paths.NOTHING)


def no_home(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(encoding, "HOME", "nowhere")


WRONG = {
    f.__name__: f
    for f in (
        undecoded,
        unprotected,
        filled_folders_are_like_any_other,
        one_file_is_enough,
        no_file_abstains,
        stars_stand_for_something,
        only_the_first_rule,
        denials_forgotten,
        secrets_without_release_go_anywhere,
        no_host_that_nobody_names,
        no_encoded_slash_in_the_space,
        accepting_too_early,
        names_with_their_case,
        no_home,
    )
}
WRONG |= {"any_query": any_query, "any_verb": any_verb, "any_port": any_port}
WRONG |= {
    "any_rule_opens_what_acts_later": acting(at=acting_paths.NEVER),
    "nothing_acts_later": acting(at=0),
    "own_folders_are_no_exception": acting(but=""),
    "making_a_folder_is_writing": acting(effect=acting_paths.CHANGES),
}
WRONG |= {"below_forgotten": without("below"), "leads_forgotten": without("leads")}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_a_wrong_encoding_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    WRONG[name](monkeypatch)
    assert next(disagreements(1, 300, 60), None) is not None


def test_an_atom_says_which_reading_it_is_of() -> None:
    parts = frozenset({("a", None)})
    assert Atom("find", True, parts) != Atom("find", False, parts)
