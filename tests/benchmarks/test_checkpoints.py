from benchmarks.checkpoints import cost


def test_the_cost_is_a_share_of_the_whole_time_and_the_first_round_compiles():
    rows = [{"held up s": held_up, "saved in s": saved} for held_up, saved in ((90.0, 90.0), (1.0, 20.0), (2.0, 10.0))]
    expected = "every 1,000 steps of 0.098 s, saving costs 2.00% of the time, and 16.95% at most"
    assert cost(rows, 0.098, 1000) == expected
    assert "47.87% of the time" in cost(rows[:1], 0.098, 1000)
