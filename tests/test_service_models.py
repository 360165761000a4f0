"""The model in memory: held, let go, unloaded after a while, loaded by who comes next."""

from __future__ import annotations

import asyncio
import math

import pytest

from fakes import ALICE, FakeEngine, make_service, request
from naiad.client.base import EngineState
from naiad.config import Config
from naiad.errors import AdminRequired, EngineUnavailable, ModelNotFound
from naiad.service.models import Models
from naiad.types import Caller, Residency
from patience import PATIENCE_S

ADMIN = Caller("root", is_admin=True)


async def test_the_last_who_lets_go_sets_the_time() -> None:
    engine = FakeEngine()
    models = Models(engine, idle_s=0.001)
    with models.hold(), models.hold():
        assert models.residency == Residency(is_loaded=True, expires_in_s=0.001)
    assert (models.residency.expires_in_s or 0) == pytest.approx(0, abs=0.0011)
    await engine.until(lambda: engine.state is EngineState.UNLOADED)
    assert engine.n_unloads == 1
    assert models.residency == Residency(is_loaded=False, expires_in_s=None)


async def test_who_holds_the_model_stops_the_time() -> None:
    engine = FakeEngine()
    models = Models(engine, idle_s=0.001)
    models.start_counting()
    with models.hold(keep_s=math.inf):
        await asyncio.to_thread(lambda: None)
        assert models._timer is None
    assert (models._timer, engine.n_unloads) == (None, 0)
    assert models.residency == Residency(is_loaded=True, expires_in_s=None)


async def test_what_was_asked_for_lasts_until_something_else_is_or_the_model_goes() -> None:
    engine = FakeEngine()
    models = Models(engine)
    with models.hold(keep_s=60):
        pass
    with models.hold():
        assert models.residency.expires_in_s == 60
    with models.hold(keep_s=0), models.hold():
        assert engine.n_unloads == 0
    assert (engine.n_unloads, engine.state) == (1, EngineState.UNLOADED)
    with models.hold():
        await models.ready()
    assert models.residency == Residency(is_loaded=True, expires_in_s=None)
    models.close()


async def test_the_time_begins_again_while_the_model_is_not_loaded_yet() -> None:
    engine = FakeEngine()
    engine.state = EngineState.STARTING
    models = Models(engine, idle_s=60)
    models.start_counting()
    models._expire()
    assert (models._timer is not None, engine.n_unloads) == (True, 0)
    models.close()
    assert models._timer is None


async def test_loading_is_told_as_it_goes_on() -> None:
    engine = FakeEngine()
    engine.unload()
    engine.after_load = EngineState.STARTING
    models, told = Models(engine), []

    async def tell(loaded: float) -> None:
        told.append(loaded)
        step = {0.5: (EngineState.STARTING, 0.75), 0.75: (EngineState.RESTARTING, 0.0)}
        engine.become(*step.get(loaded, (EngineState.READY, 1.0)))

    await models.ready(tell)
    assert told == [0.5, 0.75, 0.0]
    await models.ready(tell)
    assert len(told) == 3


async def test_a_load_that_fails_is_said_and_tried_again_by_the_next_request() -> None:
    engine = FakeEngine()
    service = make_service(engine)
    engine.unload()
    engine.after_load = EngineState.UNLOADED
    with pytest.raises(EngineUnavailable, match="could not be loaded") as refused:
        async with service.generate(request(), ALICE):
            raise AssertionError("entered")
    assert refused.value.details["retry_after"] >= 1
    engine.after_load = EngineState.READY
    async with service.generate(request(), ALICE) as generation:
        assert (await generation.whole()).text == "hello"


async def test_plain_queries_bring_the_model_back_but_looking_does_not() -> None:
    engine = FakeEngine()
    service = make_service(engine)
    engine.unload()
    assert (service.model.name, service.is_ready, service.health()["status"]) == (
        *("fake", True),
        "unloaded",
    )
    assert engine.state is EngineState.UNLOADED
    assert await service.tokenize("hi") == [104, 105]
    engine.unload()
    assert await service.detokenize([104]) == "h"


async def test_who_may_say_how_long() -> None:
    engine = FakeEngine()
    service = make_service(engine)
    with pytest.raises(AdminRequired):
        await service.load(None, 0, ALICE)
    await service.load(None, 60, ALICE)
    assert service.residency.expires_in_s is None
    await service.load(None, 86_400, ADMIN)
    assert service.residency.expires_in_s == pytest.approx(86_400, abs=PATIENCE_S)
    await service.load("fake", 0, ADMIN)
    assert engine.n_unloads == 1
    await service.load(None, None, ALICE)
    assert service.residency == Residency(is_loaded=True, expires_in_s=None)
    with pytest.raises(ModelNotFound):
        await make_service(engine, Config(strict_model=True)).load("other", None, ADMIN)
    await service.close()


async def test_the_setting_unloads_without_any_request() -> None:
    engine = FakeEngine()
    service = make_service(engine, Config(idle_unload_s=0.001))
    await service.start()
    await engine.until(lambda: engine.n_unloads == 1)
    async with service.generate(request(), ALICE) as generation:
        assert engine.n_unloads == 1
        await generation.whole()
    await engine.until(lambda: engine.n_unloads == 2)
    await service.close()
