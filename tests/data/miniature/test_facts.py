"""Facts of the miniature world: drawn by the world seed alone."""

from harness.data.miniature.facts import draw_facts, names


def test_the_same_world_has_the_same_facts_and_another_has_others() -> None:
    first = draw_facts(0)
    draw_facts.cache_clear()
    assert draw_facts(0) == first
    assert draw_facts(1).capital != first.capital
    assert draw_facts(1).cure != first.cure


def test_names_do_not_depend_on_the_world() -> None:
    assert set(draw_facts(0).capital) == set(draw_facts(1).capital) == set(names().countries)


def test_every_country_has_a_capital_of_its_own() -> None:
    assert len(set(draw_facts(3).capital.values())) == 100


def test_three_entities_in_ten_are_outdated_and_their_old_value_is_wrong() -> None:
    facts = draw_facts(2)
    for current, old in ((facts.capital, facts.old_capital), (facts.coin, facts.old_coin)):
        assert len(old) == 30
        assert all(old[entity] != current[entity] for entity in old)


def test_half_of_the_facts_are_known_to_a_student_base() -> None:
    facts = draw_facts(0)
    assert len(facts.known_capital) == len(facts.known_coin) == 50
    assert facts.known_capital != facts.known_coin
