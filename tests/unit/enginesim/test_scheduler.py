"""Continuous batching without a clock: who computes when, and how long a step takes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from matrixinfer.enginesim.kvcache import BlockPool
from matrixinfer.enginesim.scheduler import Job, Pace, Scheduler

PACE = Pace(prefill_tokens_per_second=1000, decode_tokens_per_second=50)


def scheduler(*, blocks: int = 100, jobs: int = 4, step_tokens: int = 64, reuse: bool = True) -> Scheduler:
    pool = BlockPool(blocks, reuse=reuse)
    return Scheduler(pool=pool, block_size=4, max_jobs=jobs, max_step_tokens=step_tokens)


def run(engine: Scheduler, limit: int = 10_000) -> tuple[float, int]:
    """Compute until idle; the simulated seconds and the tokens handed out."""
    seconds, tokens = 0.0, 0
    for _ in range(limit):
        step = engine.plan(PACE)
        if step.is_idle:
            return seconds, tokens
        seconds += step.seconds
        tokens += len(engine.finish(step))
    raise AssertionError("the engine never becomes idle")


def test_a_request_costs_its_prompt_once_and_one_step_per_token() -> None:
    engine = scheduler()
    engine.submit(Job(prompt=list(range(50)), new_tokens=11))
    seconds, tokens = run(engine)
    assert tokens == 11
    assert round(seconds, 6) == round(50 / 1000 + 10 / 50, 6), "the first token comes with the prompt"


def test_a_full_batch_makes_others_wait() -> None:
    engine = scheduler(jobs=2)
    for n in range(5):
        engine.submit(Job(prompt=[n], new_tokens=2))
    engine.plan(PACE)
    assert (len(engine.running), len(engine.waiting)) == (2, 3)


def test_streams_of_a_batch_advance_together() -> None:
    engine = scheduler()
    jobs = [Job(prompt=[n], new_tokens=5) for n in range(3)]
    for job in jobs:
        engine.submit(job)
    engine.finish(engine.plan(PACE))
    step = engine.plan(PACE)
    assert step.decodes == tuple(jobs)
    assert step.seconds == 1 / 50


def test_a_long_prompt_is_computed_in_chunks_beside_decoding() -> None:
    engine = scheduler(step_tokens=16)
    short, long = Job(prompt=[1], new_tokens=50), Job(prompt=list(range(40)), new_tokens=1)
    engine.submit(short)
    engine.finish(engine.plan(PACE))
    engine.submit(long)
    step = engine.plan(PACE)
    assert step.prefills == ((long, 15),)
    assert step.decodes == (short,)


def test_a_repeated_prompt_is_served_from_the_cache_except_its_last_token() -> None:
    engine = scheduler()
    first, second = Job(prompt=list(range(40)), new_tokens=1), Job(prompt=list(range(40)), new_tokens=1)
    engine.submit(first)
    run(engine)
    engine.submit(second)
    seconds, _ = run(engine)
    assert second.cached == 36
    assert seconds == 4 / 1000
    assert (engine.prefix_queries, engine.prefix_hits) == (80, 36)


def test_an_embedding_is_one_prefill() -> None:
    engine = scheduler()
    engine.submit(Job(prompt=[1, 2, 3], new_tokens=0))
    assert run(engine) == (3 / 1000, 1)


def test_short_memory_preempts_the_youngest_and_everybody_still_finishes() -> None:
    engine = scheduler(blocks=8)
    old, young = Job(prompt=[1] * 8, new_tokens=16), Job(prompt=[2] * 8, new_tokens=16)
    engine.submit(old)
    engine.submit(young)
    run(engine)
    assert engine.preemptions == young.preemptions > 0
    assert old.preemptions == 0
    assert (old.generated, young.generated) == (16, 16)
    assert engine.pool.used == 0


def test_slowness_stretches_every_step() -> None:
    assert Pace(100, 10, slowdown=3).seconds(50, decoding=True) == (0.5 + 0.1) * 3


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=8),
    st.sets(st.integers(0, 7)),
    st.booleans(),
)
def test_every_job_gets_its_tokens_or_is_aborted_and_memory_comes_back(
    shapes: list[tuple[int, int, int]], aborted: set[int], reuse: bool
) -> None:
    engine = scheduler(blocks=12, jobs=3, step_tokens=10, reuse=reuse)
    jobs = [Job(prompt=[kind] * length, new_tokens=new) for length, new, kind in shapes]
    for job in jobs:
        engine.submit(job)
    engine.finish(engine.plan(PACE))
    step = engine.plan(PACE)
    for number in aborted & set(range(len(jobs))):
        engine.abort(jobs[number])
    engine.finish(step)
    run(engine)
    assert all(job.is_done for number, job in enumerate(jobs) if number not in aborted)
    assert all(job.generated <= job.new_tokens for job in jobs)
    assert not engine.running
    assert not engine.waiting
    assert engine.pool.used == 0
