# SPDX-License-Identifier: GPL-2.0-or-later
"""The private broker is an extra: the rest of the testing package does without it."""

import subprocess
import sys


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_testing_package_does_not_import_the_broker():
    done = run(
        "import sys, consumer_framework.testing\n"
        "print([name for name in sys.modules if name.startswith('consumer_framework.testing.b')])"
    )
    assert done.stdout == "[]\n"


def test_a_missing_package_is_named_in_one_line_with_the_command_that_installs_it():
    done = run(
        "import sys, consumer_framework.testing.broker\n"
        "sys.modules['cryptography'] = None\n"
        "try:\n"
        "    import consumer_framework.testing.broker.tls\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    assert done.stdout == (
        "consumer_framework.testing.broker.tls needs cryptography; "
        "install it with `pip install 'consumer-framework[broker]'`\n"
    ), done.stderr
