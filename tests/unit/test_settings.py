# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration is checked whole. Each problem has its TOML path, and none shows a secret."""

import copy
import dataclasses
import math
import typing
from typing import Any, NotRequired, Required, TypedDict

import pydantic
import pytest
from fedora_messaging.config import DEFAULTS
from hypothesis import given
from hypothesis import strategies as st

from consumer_framework.core.errors import ConfigurationError
from consumer_framework.core.recovery import Then
from consumer_framework.core.text import duration_text
from consumer_framework.settings import (
    TRANSIENT_QUEUE,
    Framework,
    Overrides,
    Recovery,
    RuleSettings,
    Settings,
    instance_name_problem,
    is_config_type,
    known_keys,
    override,
    parse,
    parse_consumer_config,
)

QUEUE = {"durable": True, "auto_delete": False, "exclusive": False, "arguments": {}}


def document(**changes: Any) -> dict[str, Any]:
    defaults = copy.deepcopy(dict(DEFAULTS))
    return {**defaults, "log_config": None, "monitoring": None, **changes}


def problems(**changes: Any) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        parse(document(**changes))
    return [str(problem) for problem in caught.value.problems]


def test_the_defaults_of_fedora_messaging_are_a_configuration():
    settings = parse(document())
    assert set(settings.queues) == {""}
    assert settings.qos.prefetch_count == 10
    assert settings.bindings_of("") == settings.bindings
    assert settings.bindings_of("other") == []


def test_settings_cannot_be_changed():
    settings = parse(document())
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        settings.topic_prefix = "org"
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        settings.qos.prefetch_count = 1


def test_every_kind_of_error_is_reported_at_once():
    found = problems(
        ammqp_url="amqp://",
        topic_prefix=5,
        queues={"one": {**QUEUE, "durable": "yes"}, "two": {"durable": True}},
        bindings=[
            {"queue": "three", "exchange": "amq.topic", "routing_keys": "#"},
            {"queue": "one", "exchang": "amq.topic", "routing_keys": ["#", 5]},
        ],
        qos={"prefetch_count": 70000, "prefetch_size": True},
        tls={"ca_certs": "/etc/ca.pem"},
        monitoring={"address": "::1"},
        consumer_config={
            "framework": {
                "recovry": {},
                "recovery": {"delays": ["10s", "soon"], "on_exhausted": "give up"},
            }
        },
    )
    assert set(found) == {
        'ammqp_url: unknown key; did you mean "amqp_url"?',
        "topic_prefix: must be a string; it is an integer now",
        "queues.one.durable: must be a boolean; it is a string now",
        "queues.two.auto_delete: this key is required; add it",
        "queues.two.exclusive: this key is required; add it",
        "queues.two.arguments: this key is required; add it",
        "bindings[0].routing_keys: must be an array; it is a string now",
        "bindings[1].exchange: this key is required; add it",
        'bindings[1].exchang: unknown key; did you mean "exchange"?',
        "bindings[1].routing_keys[1]: must be a string; it is an integer now",
        (
            'bindings[0].queue: there is no [queues."three"] for this binding; '
            'declare it, or name a queue that is declared ("one", "two")'
        ),
        "qos.prefetch_count: must be less than or equal to 65535",
        "qos.prefetch_size: must be an integer; it is a boolean now",
        'tls.ca_certs: unknown key; did you mean "ca_cert"?',
        "monitoring.port: this key is required; add it",
        'consumer_config.framework.recovry: unknown key; did you mean "recovery"?',
        (
            "consumer_config.framework.recovery.delays[1]: "
            'must be a length of time such as "10s", "5m", "1h 30m" or "7d"'
        ),
        (
            "consumer_config.framework.recovery.on_exhausted: "
            'must be "quarantine", "drop", "requeue", "reject" or "halt"'
        ),
    }
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"wholly_other": 1}, "wholly_other: unknown key; the keys here are amqp_url, bindings, "),
        ({"queues": {"": {**QUEUE, "color": 1}}}, 'queues."".color: unknown key; the keys here'),
        ({"queues": {"": {**QUEUE, "durabel": 1}}}, 'queues."".durabel: unknown key; did you mean'),
        ({"queues": {}}, "queues: there is no queue to consume from; add a [queues.NAME] table"),
        ({"queues": []}, "queues: must be a table; it is an array now"),
        ({"queues": {"": 1}}, 'queues."": must be a table'),
        ({"queues": {"a.b": {}, "": QUEUE}}, 'queues."a.b".durable: this key is required; add it'),
        ({"bindings": {}}, "bindings: must be an array; it is a table now"),
        ({"bindings": [3]}, "bindings[0]: must be a table"),
        ({"consumer_config": 3}, "consumer_config: must be a table"),
        ({"consumer_config": {"framework": 3}}, "consumer_config.framework: must be a table"),
        ({"qos": {"prefetch_count": -1}}, "qos.prefetch_count: must be greater than or equal to 0"),
        ({"monitoring": {"port": 0}}, "monitoring.port: must be greater than or equal to 1"),
        ({"callback": 1.5}, "callback: must be a string; it is a float now"),
    ],
)
def test_a_problem_names_its_toml_path_and_says_what_to_do(changes, problem):
    (found, *more) = problems(**changes)
    assert found.startswith(problem)
    assert all(line.partition(":")[0].startswith('queues."a.b".') for line in more)


RULE = {"exceptions": ["KeyError"], "then": "drop"}


def recovery(**table: Any) -> dict[str, Any]:
    return {"consumer_config": {"framework": {"recovery": table}}}


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"delay": []}, 'delay: unknown key; did you mean "delays"?'),
        ({"delays": [5, -1]}, "delays[1]: must be a length of time"),
        ({"delays": [float("nan")]}, "delays[0]: must be a length of time"),
        ({"immediate": True}, "immediate: must be an integer; it is a boolean now"),
        ({"immediate": -1}, "immediate: must be greater than or equal to 0"),
        ({"hold_slots": -1}, "hold_slots: must be greater than or equal to 0"),
        ({"ack_timeout": "0s"}, "ack_timeout: must be greater than 0"),
        ({"crash_attempts": 0}, "crash_attempts: must be greater than or equal to 1"),
        ({"on_exhausted": "hold"}, 'on_exhausted: must be "quarantine", "drop", "requeue"'),
        ({"breaker": {"probes": []}}, 'breaker.probes: unknown key; did you mean "probe"?'),
        ({"breaker": {"consecutive": 0}}, "breaker.consecutive: must be greater than or equal"),
        (
            {"on_exhausted": "Drop "},
            'on_exhausted: must be "quarantine", "drop", "requeue", "reject" or "halt"',
        ),
        ({"on_exhausted": "requeu"}, 'on_exhausted: must be "quarantine", "drop", "requeue", '),
        ({"on_exhausted": 3}, 'on_exhausted: must be "quarantine", "drop", "requeue", "reject" '),
        ({"on_invalid": "drop"}, 'on_invalid: must be "quarantine" or "reject"'),
        ({"breaker": {"probe": []}}, "breaker.probe: must have at least 1 item; add one"),
        ({"breaker": {"probs": []}}, 'breaker.probs: unknown key; did you mean "probe"?'),
        ({"rules": [RULE, RULE | {"when": 1}]}, 'rules[1].when: unknown key; did you mean "then"'),
        ({"rules": [RULE | {"x": 1}]}, "rules[0].x: unknown key; the keys here are exceptions, t"),
        ({"rules": [RULE | {"exceptions": [5]}]}, "rules[0].exceptions[0]: must be a string; it "),
        ({"rules": [RULE | {"exceptions": "a"}]}, "rules[0].exceptions: must be an array; it is "),
        ({"rules": [{"exceptions": [], "then": "drop"}]}, "rules[0].exceptions: must have at lea"),
        ({"rules": [{"then": "drop"}]}, "rules[0].exceptions: this key is required; add it"),
        ({"rules": [{"exceptions": ["a"], "then": "x"}]}, 'rules[0].then: must be "retry", "de'),
    ],
)
def test_a_problem_of_recovery_names_its_toml_path(table, problem):
    (found,) = problems(**recovery(**table))
    assert found.startswith(f"consumer_config.framework.recovery.{problem}")


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"slot": 1}, 'slot: unknown key; did you mean "slots"?'),
        ({"slots": 0}, "slots: must be greater than or equal to 1"),
        ({"batch": {"sise": 1}}, 'batch.sise: unknown key; did you mean "size"?'),
        ({"batch": {"quick": 1}}, "batch.quick: unknown key; the keys here are seconds, size"),
        ({"batch": 5}, "batch: must be a table"),
        ({"ordering": "keys"}, 'ordering: must be "none", "key" or "strict"; did you mean "key"?'),
        ({"ordering": "x"}, 'ordering: must be "none", "key" or "strict"'),
        ({"ordering_key": "topics"}, 'ordering_key: must be "topic", "header:NAME" or "body:PATH"'),
        ({"rate": 5}, 'rate: must be a rate such as "100/s"'),
        ({"ordering_key": "topic"}, 'ordering_key: has no effect with ordering = "none"; set ord'),
        (
            {"ordering": "strict", "batch": {}},
            'batch: with ordering = "strict" one message is handled at a time; remove it, or order',
        ),
        ({"burst": 5}, "burst: has no effect without rate; set rate, or remove it"),
        (
            {"handler_timeout": "30m"},
            "handler_timeout: 30m is not shorter than recovery.ack_timeout (30m), after which",
        ),
    ],
)
def test_a_problem_of_the_framework_names_its_toml_path(table, problem):
    (found,) = problems(consumer_config={"framework": table})
    assert found.startswith(f"consumer_config.framework.{problem}")


NUMBERS = [
    "slots",
    "read_ahead",
    "read_ahead_bytes",
    "burst",
    "quarantine_max_bytes",
    "quarantine_max_age",
    "handler_timeout",
    "start_timeout",
    "rate",
    "batch.size",
    "batch.seconds",
    "recovery.immediate",
    "recovery.hold_slots",
    "recovery.ack_timeout",
    "outbox.window",
    "outbox.lease",
    "outbox.timeout",
    "outbox.max_body",
    "recovery.crash_attempts",
    "recovery.breaker.consecutive",
    "thresholds.lag",
    "thresholds.lag_time",
    "thresholds.slow",
    "thresholds.retry_percent",
    "thresholds.idle",
    "thresholds.loss",
    "queue_policy.max_messages",
    "queue_policy.max_bytes",
    "queue_policy.message_ttl",
    "queue_policy.expires",
    "health_interval",
    "health_timeout",
]
LISTS = ["recovery.delays", "recovery.breaker.probe", "recovery.rules", "brokers"]
LISTS += ["outbox.endpoints", "outbox.rules"]


def at(path, value):
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


@pytest.mark.parametrize("value", [1 << 62, -1, math.nan, math.inf, -math.inf, 10**400])
@pytest.mark.parametrize("path", NUMBERS)
def test_every_number_of_the_framework_has_bounds(path, value):
    (found, *_) = problems(consumer_config={"framework": at(path, value)})
    assert found.startswith(f"consumer_config.framework.{path}: must be ")


def test_every_number_of_the_framework_is_tried_for_bounds():
    def numbers(model, prefix=""):
        for name, field in model.model_fields.items():
            inner = [
                a
                for a in (field.annotation, *typing.get_args(field.annotation))
                if hasattr(a, "model_fields")
            ]
            if inner:
                yield from numbers(inner[0], f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}"

    others = {"store", "ordering", "ordering_key", "recovery.on_exhausted", "recovery.on_invalid"}
    others |= {
        "publishing",
        "profile",
        "traces",
        "recovery.rules.exceptions",
        "recovery.rules.then",
    }
    words = ("database", "messenger", "lossy", "on_failure", "unroutable", "options")
    rule = ("topics", "on_failure", "unroutable")
    others |= {f"outbox.{word}" for word in words} | {f"outbox.rules.{word}" for word in rule}
    tables = {"recovery.rules", "outbox.rules"}
    assert set(numbers(Framework)) - others == {*NUMBERS, *LISTS} - tables


@pytest.mark.parametrize("path", LISTS)
def test_every_list_of_the_framework_has_a_greatest_length(path):
    items: dict[str, Any] = {
        "recovery.rules": {"exceptions": ["a.B"], "then": "drop"},
        "outbox.rules": {"topics": "#"},
    }
    item = items.get(path, "10s")
    (found,) = problems(consumer_config={"framework": at(path, [item] * 10_001)})
    assert found.startswith(f"consumer_config.framework.{path}: must have at most 100")


@pytest.mark.parametrize("value", [1, [1]])
def test_the_settings_sent_to_the_broker_have_bounds_too(value):
    def nested(depth):
        return value if not depth else {"a": [nested(depth - 1)]}

    huge = {"a": [{"b": 1 << 63}]}
    for arguments, problem in (
        (huge, "must have no integers of more than 64 bits"),
        ({"a": math.nan}, "must have no numbers that are not finite"),
        (nested(30), "must be no more than 20 tables deep"),
    ):
        for changes in (
            {"queues": {"": {**QUEUE, "arguments": arguments}}},
            {"client_properties": arguments},
            {"bindings": [{"exchange": "e", "routing_keys": ["#"], "arguments": arguments}]},
        ):
            (found,) = problems(**changes)
            assert problem in found


def test_slots_and_a_batch_that_are_too_much_together_are_a_problem():
    (found,) = problems(consumer_config={"framework": {"slots": 64, "batch": {"size": 10_000}}})
    assert found == (
        "consumer_config.framework.batch.size: 64 slots of 10000 are more than 10000 messages in "
        "handlers at once; set it to 156 or less, or set fewer slots"
    )


def test_the_usual_handler_timeout_is_shortened_by_a_short_ack_timeout():
    table = {"recovery": {"ack_timeout": "5m"}}
    framework = parse(document(consumer_config={"framework": table})).framework
    assert framework.handler_limit(usual=600.0) == 300.0
    assert framework.handler_limit(usual=math.inf) == math.inf


def test_a_handler_timeout_may_be_endless():
    table = {"handler_timeout": "infinity"}
    framework = parse(document(consumer_config={"framework": table})).framework
    assert framework.handler_limit(usual=600.0) == math.inf
    assert duration_text(math.inf) == "infinity"


def test_all_settings_that_contradict_each_other_are_reported():
    table = {"ordering_key": "topic", "burst": 1, "handler_timeout": "1h"}
    assert [line.partition(":")[0] for line in problems(consumer_config={"framework": table})] == [
        f"consumer_config.framework.{key}" for key in ("ordering_key", "burst", "handler_timeout")
    ]


def test_recovery_has_the_documented_defaults():
    promised = {
        "immediate": 1,
        "delays": ["10s", "1m", "5m"],
        "hold_slots": 4,
        "ack_timeout": "30m",
        "on_exhausted": "quarantine",
        "on_invalid": "quarantine",
        "crash_attempts": 2,
        "breaker": {"consecutive": 5, "probe": ["30s", "5m"]},
        "rules": [],
    }
    assert set(promised) == set(Recovery.model_fields)
    assert parse(document(**recovery(**promised))).framework.recovery == Recovery()
    assert parse(document()).framework.recovery == Recovery()


def test_recovery_settings_of_a_file_override_those_of_the_class():
    own = Recovery(
        immediate=3, hold_slots=2, rules=(RuleSettings(exceptions=(KeyError,), then=Then.DROP),)
    )
    written = Recovery(immediate=1, rules=(RuleSettings(exceptions=("OSError",), then=Then.HALT),))
    both = own.overridden_by(written)
    assert (both.immediate, both.hold_slots, both.crash_attempts) == (1, 2, 2)
    assert [rule.exceptions for rule in both.rules] == [("OSError",), (KeyError,)]


def test_a_binding_without_a_queue_needs_the_server_named_queue():
    bindings = [{"exchange": "amq.topic", "routing_keys": ["#"]}]
    assert parse(document(bindings=bindings)).bindings[0].queue == ""
    assert problems(bindings=bindings, queues={"one": QUEUE}) == [
        (
            'bindings[0].queue: there is no [queues.""] for this binding; '
            'declare it, or name a queue that is declared ("one")'
        )
    ]


def test_default_bindings_are_no_problem_where_the_file_names_queues():
    settings = parse(document(queues={"one": QUEUE}), default_bindings=True)
    assert settings.bindings_of("one") == []


SECRET = "correct horse battery staple"  # noqa: S105 -- nobody's
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.just(SECRET))
NESTED = st.one_of(
    SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.text(), SCALARS, max_size=3)
)
JSON = st.one_of(
    NESTED, st.lists(NESTED, max_size=3), st.dictionaries(st.text(), NESTED, max_size=3)
)


@given(st.dictionaries(st.sampled_from(sorted(Settings.model_fields)), JSON, min_size=1))
def test_no_problem_shows_a_value_of_the_configuration(changes):
    # `queue` of a binding is a name, and is shown.
    changes.pop("bindings", None)
    try:
        parse(document(**changes))
    except ConfigurationError as error:
        assert SECRET not in str(error)  # noqa: PT017 -- many are valid


@pytest.mark.parametrize("secret_in", ["amqp_url", "tls", "qos", "queues", "consumer_config"])
def test_a_value_of_the_wrong_type_is_named_by_its_type_alone(secret_in):
    (problem, *_) = problems(**{secret_in: [SECRET]})
    assert SECRET not in problem
    assert "it is an array now" in problem


# Overrides of the command line.


def test_without_overrides_the_document_is_unchanged():
    assert override(document(), Overrides()) == document()


def test_a_queue_name_keeps_the_settings_that_the_file_has_for_it():
    queues = {"one": QUEUE, "two": TRANSIENT_QUEUE}
    bindings = [{"queue": q, "exchange": "e", "routing_keys": [q]} for q in queues]
    result = override(document(queues=queues, bindings=bindings), Overrides(queue_name="one"))
    assert result["queues"] == {"one": QUEUE}
    assert [b["queue"] for b in result["bindings"]] == ["one", "one"]
    assert [b["routing_keys"] for b in result["bindings"]] == [["one"], ["two"]]


@pytest.mark.parametrize(
    ("queues", "settings"),
    [({"": QUEUE}, QUEUE), ({"two": QUEUE}, TRANSIENT_QUEUE)],
)
def test_an_unknown_queue_name_gets_the_settings_of_a_server_named_queue(queues, settings):
    result = override(document(queues=queues), Overrides(queue_name="one"))
    assert result["queues"] == {"one": settings}


def test_exchange_and_routing_keys_change_every_binding_and_the_name_the_properties():
    overrides = Overrides("app", "", "exchange", ("a", "b"))
    before = document()
    result = override(before, overrides)
    assert result["bindings"] == [{"queue": "", "exchange": "exchange", "routing_keys": ["a", "b"]}]
    assert result["client_properties"] == {**DEFAULTS["client_properties"], "app": "app"}
    assert before == document(), "the document itself is not touched"


def test_overrides_leave_a_wrong_document_to_the_checks():
    wrong = document(queues=1, bindings=2, client_properties=3)
    assert override(wrong, Overrides("app", "queue", "exchange", ("key",))) == wrong
    assert override(document(bindings=[4]), Overrides(exchange="e"))["bindings"] == []


# The author's Config.


class Model(pydantic.BaseModel):
    packages: list[str]
    limit: int = 3


@dataclasses.dataclass
class Data:
    packages: list[str]
    limit: int = 3


class Typed(TypedDict):
    packages: list[str]
    limit: NotRequired[int]


class PartlyTyped(TypedDict, total=False):
    packages: Required[list[str]]
    limit: int


class Inherited(PartlyTyped):
    more: NotRequired[bool]


TYPES = [Model, Data, Typed, PartlyTyped, Inherited]


@pytest.mark.parametrize("config_type", TYPES)
def test_each_kind_of_config_takes_valid_values_without_the_frameworks_table(config_type):
    table = {"packages": ["kernel"], "framework": {"anything": 1}}
    config = parse_consumer_config(config_type, table)
    if typing.is_typeddict(config_type):
        assert config == {"packages": ["kernel"]}
    else:
        assert config == config_type(packages=["kernel"])


@pytest.mark.parametrize("config_type", TYPES)
def test_each_kind_of_config_reports_every_problem_at_once(config_type):
    with pytest.raises(ConfigurationError) as caught:
        parse_consumer_config(config_type, {"package": [SECRET], "limit": SECRET})
    assert {str(problem) for problem in caught.value.problems} == {
        "consumer_config.packages: this key is required; add it",
        (
            "consumer_config.limit: must be an integer, unable to parse string as an integer; "
            "it is a string now"
        ),
        'consumer_config.package: unknown key; did you mean "packages"?',
    }


@pytest.mark.parametrize("config_type", TYPES)
def test_each_kind_of_config_is_recognized_and_lists_its_keys(config_type):
    assert is_config_type(config_type)
    assert {"packages", "limit"} <= (known_keys(config_type) or set())


@pytest.mark.parametrize("value", [dict, "Config", Data(packages=[]), Model(packages=[]), 3, None])
def test_nothing_else_is_a_config(value):
    assert not is_config_type(value)


def test_without_a_config_the_author_gets_the_unchanged_table():
    assert parse_consumer_config(None, {"a": 1, "framework": {}}) == {"a": 1}


@pytest.mark.parametrize("extra", ["allow", "ignore"])
def test_a_model_that_sets_extra_keeps_its_setting(extra):
    model = pydantic.create_model("Model", __config__=pydantic.ConfigDict(extra=extra))
    parse_consumer_config(model, {"anything": 1})


def test_a_model_that_forbids_extra_keys_reports_each_once():
    model = pydantic.create_model("Model", __config__=pydantic.ConfigDict(extra="forbid"), key=int)
    with pytest.raises(ConfigurationError) as caught:
        parse_consumer_config(model, {"key": 1, "kez": 2})
    assert [str(p) for p in caught.value.problems] == [
        'consumer_config.kez: unknown key; did you mean "key"?'
    ]


def test_a_key_may_be_called_by_its_alias():
    class Aliased(pydantic.BaseModel):
        log_level: str = pydantic.Field(alias="log-level")

    assert parse_consumer_config(Aliased, {"log-level": "info"}).log_level == "info"


def test_a_problem_inside_a_nested_table_has_the_whole_path():
    class Inner(pydantic.BaseModel):
        ports: list[int]

    class Outer(pydantic.BaseModel):
        servers: dict[str, Inner]

    table = {"servers": {"a b": {"ports": [1, SECRET]}}}
    with pytest.raises(ConfigurationError) as caught:
        parse_consumer_config(Outer, table)
    (problem,) = caught.value.problems
    assert problem.path == 'consumer_config.servers."a b".ports[1]'
    assert SECRET not in str(problem)


def test_a_value_that_may_be_of_several_types_is_one_problem_without_pydantics_names():
    class Server(pydantic.BaseModel):
        host: str

    class Several(pydantic.BaseModel):
        port: int | bool
        level: typing.Literal["low", "high"]
        server: Server | list[str]
        servers: dict[str, Server | None] = {}

    table = {"port": [SECRET], "level": "hihg", "server": {"hots": 1}, "servers": {"a": {}}}
    with pytest.raises(ConfigurationError) as caught:
        parse_consumer_config(Several, table)
    assert {str(problem) for problem in caught.value.problems} == {
        "consumer_config.port: must be an integer or a boolean; it is an array now",
        'consumer_config.level: must be "low" or "high"; did you mean "high"?',
        "consumer_config.server.host: this key is required; add it",
        "consumer_config.server: must be an array; it is a table now",
        "consumer_config.servers.a.host: this key is required; add it",
    }


def test_the_message_of_the_authors_own_validator_is_shown():
    class Checked(pydantic.BaseModel):
        glob: str

        @pydantic.field_validator("glob")
        @classmethod
        def check(cls, value: str) -> str:
            raise ValueError("Globs are not good")

    with pytest.raises(ConfigurationError, match=r"consumer_config\.glob: Globs are not good"):
        parse_consumer_config(Checked, {"glob": "*"})


def test_a_config_that_pydantic_cannot_use_is_a_problem_of_the_class():
    class Odd:
        pass

    @dataclasses.dataclass
    class Config:
        odd: Odd

    with pytest.raises(ConfigurationError, match=r"(?s)Config cannot be used: .*mend the class"):
        parse_consumer_config(Config, {"odd": 1})


# The names of instances.


@pytest.mark.parametrize("name", ["a", "Fedora-Notifs_2", "x" * 28])
def test_names_that_systemd_takes_for_users_are_instance_names(name):
    assert instance_name_problem(name) is None


@pytest.mark.parametrize("name", ["", "x" * 29, "a.b", "../etc", "a b", "é", "a\n", "a@b"])
def test_nothing_else_is_an_instance_name(name):
    problem = instance_name_problem(name)
    assert problem is not None
    assert repr(name) in problem.message
    assert "--conf" in problem.cure
