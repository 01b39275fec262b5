# SPDX-License-Identifier: GPL-2.0-or-later
"""Configuration files, as the operator writes them and as fedora-messaging sees them afterwards."""

import datetime as dt
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fedora_messaging import config as upstream

from consumer_framework.adapters import config
from consumer_framework.core.errors import ConfigurationError
from consumer_framework.settings import Overrides

QUEUE = """
[queues.one]
durable = true
auto_delete = false
exclusive = false
arguments = {}
"""


@pytest.fixture(autouse=True)
def _upstreams_configuration_is_put_back():
    conf, loaded = dict(upstream.conf.items()), upstream.conf.loaded
    yield
    upstream.conf.clear()
    dict.update(upstream.conf, conf)
    upstream.conf.loaded = loaded


@pytest.fixture
def load(tmp_path):
    def load_text(text, **overrides):
        path = tmp_path / "instance.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return config.load(path, Overrides(**overrides))

    return load_text


@pytest.fixture
def problems(load):
    def problems_of(text):
        with pytest.raises(ConfigurationError) as caught:
            load(text)
        assert caught.value.source.endswith("/instance.toml")
        return [str(problem) for problem in caught.value.problems]

    return problems_of


class Pem:
    """A certificate that signs itself, and its key."""

    def __init__(self, directory: Path, name: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        today = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(today)
            .not_valid_after(today + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        self.certificate = directory / f"{name}.pem"
        self.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.key = directory / f"{name}.key"
        self.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )


@pytest.fixture(scope="module")
def pems(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pems")
    return Pem(directory, "one"), Pem(directory, "two")


def tls(**files):
    lines = [f'{key} = "{path}"' for key, path in files.items()]
    return "\n".join(['amqp_url = "amqps://broker.example.org"', "[tls]", *lines])


# Reading.


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        config.load(tmp_path / "none.toml")
    assert str(caught.value) == (
        f"{tmp_path}/none.toml: there is no such file; create it, or name another one"
    )


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(ConfigurationError, match="is a directory"):
        config.load(tmp_path)


def test_a_file_that_may_not_be_read_is_a_problem(tmp_path):
    # ELOOP: root, who may run the tests, is refused nothing by permissions.
    path = tmp_path / "loop.toml"
    path.symlink_to(path)
    with pytest.raises(ConfigurationError, match=r"cannot be read: .*; check its permissions"):
        config.load(path)


def test_a_file_that_is_not_utf_8_is_refused_with_the_place(problems):
    assert problems(b'topic_prefix = "\xe9"\n') == ["is not UTF-8: byte 16; save it as UTF-8"]


def test_a_syntax_error_is_reported_with_its_line(problems):
    (problem,) = problems('topic_prefix = "a"\nqos = {\n')
    assert problem.startswith("is not TOML: ")
    assert "line 2" in problem or "end of document" in problem
    (problem,) = problems('topic_prefix = "a"\n\nthis is not toml\n')
    assert "line 3" in problem


def test_an_unknown_key_is_refused_with_the_near_one(problems):
    assert problems('calback = "a:b"') == ['calback: unknown key; did you mean "callback"?']


def test_problems_of_every_part_of_a_file_come_together(problems):
    found = problems(
        'amqp_url = "http://u:secret@h"\ncalback = 1\nqos = 3\n'
        '[client_properties]\nproduct = "mine"\n'
    )
    assert {problem.partition(":")[0] for problem in found} == {
        "amqp_url",
        "calback",
        "qos",
        "client_properties",
    }


# Defaults.


def test_no_file_at_all_means_upstreams_defaults():
    settings = config.load(None)
    assert settings.amqp_url == upstream.DEFAULTS["amqp_url"]
    assert upstream.conf == upstream.DEFAULTS


@pytest.mark.parametrize(
    ("text", "qos"),
    [
        ("[qos]\nprefetch_count = 5", (0, 5)),
        ("[qos]\nprefetch_count = 0", (0, 0)),
        ("[qos]\nprefetch_size = 5", (5, None)),
        ("[qos]", (0, None)),
        ("", (0, None)),
    ],
)
def test_a_partial_qos_table_keeps_the_other_default(load, text, qos):
    settings = load(text)
    assert (settings.qos.prefetch_size, settings.qos.prefetch_count) == qos
    theirs = 10 if qos[1] is None else qos[1]
    assert upstream.conf["qos"] == {"prefetch_size": qos[0], "prefetch_count": theirs}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 1 + 4 + 100),
        ("[qos]\nprefetch_count = 10", 10),
        ("[qos]\nprefetch_count = 0", 0),
        ("[consumer_config.framework]\nslots = 3\nread_ahead = 7", 3 + 4 + 7),
        ("[consumer_config.framework]\nslots = 3\nbatch = { size = 20 }", 60 + 4 + 100),
        ("[consumer_config.framework.recovery]\nhold_slots = 9", 1 + 9 + 100),
        (
            "[consumer_config.framework]\nslots = 1\nbatch = { size = 10000 }\nread_ahead = 65535",
            65535,
        ),
    ],
)
def test_the_prefetch_count_fits_the_slots_unless_the_file_sets_it(load, text, count):
    assert load(text).prefetch_count == count


def test_a_partial_tls_table_keeps_the_other_defaults(load, pems):
    load(tls(ca_cert=pems[0].certificate))
    assert upstream.conf["tls"] == {
        "ca_cert": str(pems[0].certificate),
        "certfile": None,
        "keyfile": None,
    }


def test_loading_changes_nothing_of_upstreams_defaults(load):
    before = repr(upstream.DEFAULTS)
    load('[client_properties]\napp = "mine"\n[qos]\nprefetch_count = 5', app_name="other")
    upstream.conf["consumer_config"]["a handler's"] = 1
    upstream.conf["exchanges"]["another"] = {}
    assert repr(upstream.DEFAULTS) == before


def test_upper_case_top_level_keys_are_taken_as_upstream_takes_them(load):
    settings = load('TOPIC_PREFIX = "org.example"\n[QOS]\nprefetch_count = 2')
    assert settings.topic_prefix == "org.example"
    assert settings.qos.prefetch_count == 2


FULL = f"""
amqp_url = "amqp://user:secret@broker.example.org:5673/%2Fpubsub"
callback = "module:object"
publish_exchange = "amq.fanout"
passive_declares = true
publish_priority = 3
[client_properties]
app = "mine"
{QUEUE}
[[bindings]]
queue = "one"
exchange = "amq.topic"
routing_keys = ["a.#", "b"]
[monitoring]
port = 8080
[consumer_config]
mine = [1, 2]
[consumer_config.framework]
"""


def test_upstreams_configuration_has_the_values_that_upstream_would_have_loaded(load, tmp_path):
    load(FULL)
    ours = dict(upstream.conf.items())
    theirs = upstream.LazyConfig().load_config(str(tmp_path / "instance.toml"))
    assert ours == theirs
    assert ours["client_properties"]["version"].startswith("fedora_messaging-")
    assert ours["monitoring"] == {"port": 8080, "address": ""}
    assert ours["consumer_config"] == {"mine": [1, 2], "framework": {}}


def test_the_settings_have_the_values_of_the_file(load):
    settings = load(FULL)
    assert settings.callback == "module:object"
    assert settings.passive_declares is True
    assert settings.monitoring is not None
    assert (settings.monitoring.address, settings.monitoring.port) == ("", 8080)
    assert settings.bindings_of("one")[0].routing_keys == ["a.#", "b"]
    assert settings.log_config is None, "upstream's default is not the file's"


def test_the_files_log_config_is_in_the_settings(load):
    assert load("[log_config]\nversion = 1").log_config == {"version": 1}


def test_overrides_reach_the_settings_and_upstream(load):
    settings = load(FULL, queue_name="one", routing_keys=("c",), app_name="other")
    assert settings.bindings_of("one")[0].routing_keys == ["c"]
    assert upstream.conf["bindings"][0]["routing_keys"] == ["c"]
    assert upstream.conf["client_properties"]["app"] == "other"


def test_a_file_that_is_refused_leaves_upstreams_configuration_alone(load):
    load('topic_prefix = "before"')
    with pytest.raises(ConfigurationError):
        load('topic_prefix = "after"\nunknown = 1')
    assert upstream.conf["topic_prefix"] == "before"


def test_upstream_does_not_read_its_own_file_again(load, monkeypatch, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text("this is not toml")
    monkeypatch.setenv("FEDORA_MESSAGING_CONF", str(other))
    upstream.conf.loaded = False
    load('topic_prefix = "mine"')
    assert upstream.conf["topic_prefix"] == "mine"


# Configurations that cannot work.


@pytest.mark.parametrize("key", ["product", "information", "version"])
def test_upstreams_own_client_properties_are_reserved(problems, key):
    assert problems(f'[client_properties]\n{key} = "mine"') == [
        f'client_properties: "{key}" is a reserved keyword in client_properties; remove that key'
    ]


SECRET_URLS = [
    "http://user:secret@host/",
    "user:secret@host",
    "amqp:user:secret@host/",
    "amqp://user:secret@host:port/",
    "amqp://user:secret@host:70000/",
    "amqp://user:secret@[host/",
    "amqp://user:secret/more@host/",
    "amqp://user:secret?more@host/",
    "amqp://user:secret#more@host/",
    "amqp://user:secret@host/?heartbeat=secret",
    "amqps://user:secret@host/%2F?ssl_options=secret",
]


@pytest.mark.parametrize("url", SECRET_URLS)
def test_a_url_that_is_wrong_is_refused_without_showing_the_password(problems, url):
    (problem,) = problems(f'amqp_url = "{url}"')
    assert problem.startswith("amqp_url: ")
    assert "secret" not in problem
    assert "more@" not in problem


@pytest.mark.parametrize("url", ["amqp://", "amqps://host", "amqp://u:p%40%2F@h:1/v?heartbeat=5"])
def test_a_url_that_pika_takes_is_accepted(load, url):
    assert load(f'amqp_url = "{url}"').amqp_url == url


@pytest.mark.parametrize("key", ["ca_cert", "certfile", "keyfile"])
def test_a_missing_tls_file_is_named(problems, key):
    (problem,) = problems(tls(**{key: "/no/such.pem"}))
    assert problem == (
        f"tls.{key}: /no/such.pem cannot be read: No such file or directory; "
        "name a PEM file that this user can read"
    )


def test_tls_files_are_not_looked_at_without_tls(load):
    settings = load('amqp_url = "amqp://host"\n[tls]\nca_cert = "/no/such.pem"')
    assert settings.tls.ca_cert == "/no/such.pem"


def test_garbage_is_no_ca_certificate(problems, tmp_path):
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("garbage")
    (problem,) = problems(tls(ca_cert=garbage))
    assert problem.startswith(f"tls.ca_cert: {garbage} holds no CA certificates (")


def test_a_key_of_another_certificate_is_refused(problems, pems):
    one, two = pems
    (problem,) = problems(tls(certfile=one.certificate, keyfile=two.key))
    assert problem.startswith(f"tls.keyfile: {two.key} is not the key of {one.certificate} (")


def test_a_certificate_with_its_own_key_is_accepted(load, pems):
    one, two = pems
    settings = load(tls(ca_cert=two.certificate, certfile=one.certificate, keyfile=one.key))
    assert settings.tls.keyfile == str(one.key)


def test_the_configuration_is_loaded_without_a_reactor():
    code = """
import sys
import consumer_framework.adapters.config
print("twisted.internet.reactor" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
