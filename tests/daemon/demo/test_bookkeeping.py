"""What was shown and answered is counted once, in the phase that it belongs to."""

import pytest
from demo_answers import FITTED, answer

from daemon.demo.bookkeeping import BEFORE, DRIFTED, RECOVERED, Bookkeeping
from deploy.store.artefacts import FACTORY


def test_answers_are_counted_in_the_phase_their_picture_belongs_to():
    books = Bookkeeping(["front"])
    shown = [(False, FACTORY), (False, FACTORY), (True, FACTORY), (True, FACTORY), (True, FITTED), (False, FITTED)]
    for seq, (drifted, _) in enumerate(shown):
        books.add_shown("front", seq, 7, drifted, now=seq)
    for seq, (_, version) in enumerate(shown):
        books.add_answer("front", answer(seq, 7 if seq != 2 else 1, version), now=seq)
    phases = books.stats("front", now=6).phases
    assert {phase: (tally.right, tally.answers) for phase, tally in phases.items()} == {
        BEFORE: (3, 3),
        DRIFTED: (1, 2),
        RECOVERED: (1, 1),
    }
    assert books.stats("front", now=6).recent_accuracy == pytest.approx(5 / 6)


def test_the_books_begin_with_the_first_answer():
    books = Bookkeeping(["front", "rear"])
    for seq in range(10):
        books.add_shown("front", seq, 0, False, now=seq)
    books.add_answer("front", answer(7, 0), now=10)
    books.add_answer("front", answer(9, 0), now=10)
    books.add_answer("front", answer(3, 0), now=10)
    books.add_answer("front", answer(9, 0), now=10)  # a second answer to the same picture
    stats = books.stats("front", now=100)
    assert (stats.sent, stats.answered, stats.unanswered) == (3, 2, 1)
    assert books.stats("rear", now=100).sent == 0


def test_pictures_missing_at_a_swap_are_counted_as_its_loss():
    books = Bookkeeping(["front"])
    for seq in range(6):
        books.add_shown("front", seq, 0, True, now=seq / 10)
    for seq, version in ((0, FACTORY), (1, FACTORY), (3, FITTED), (4, FITTED), (5, FACTORY)):
        books.add_answer("front", answer(seq, 0, version), now=seq / 10)
    swaps = books.stats("front", now=1).swaps
    assert [(swap.version, swap.lost) for swap in swaps] == [(FITTED, 1), (FACTORY, 0)]
    assert books.unanswered_around("front", swaps[0].at, 0.2) == 1
    assert books.unanswered_around("front", swaps[0].at, 0.05) == 0


def test_a_picture_on_its_way_is_not_yet_unanswered_and_one_not_sent_is_taken_back():
    books = Bookkeeping(["front"])
    for seq in range(3):
        books.add_shown("front", seq, 0, False, now=10)
    books.add_answer("front", answer(0, 0), now=10)
    books.remove_shown("front", 2)
    assert books.stats("front", now=10.5).unanswered == 0
    stats = books.stats("front", now=12)
    assert (stats.sent, stats.unanswered, stats.rate) == (2, 1, 0.0)


def test_the_rate_is_that_of_the_answers():
    books = Bookkeeping(["front"])
    for seq in range(60):
        books.add_shown("front", seq, 0, False, now=seq / 30)
        books.add_answer("front", answer(seq, 0), now=seq / 30)
    assert books.stats("front", now=2.0).rate == pytest.approx(30)
