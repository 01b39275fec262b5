# SPDX-License-Identifier: GPL-2.0-or-later
"""rabbitmqctl for a private node."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from .broker_programs import BrokerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .broker_place import Place


def rabbitmqctl(place: Place, arguments: Sequence[str], timeout: float) -> str:
    """Run rabbitmqctl against the node in *place*.

    Args:
        place: Where the node runs.
        arguments: The first is the name of the command.
        timeout: Seconds that the command may take.

    Returns:
        What the command wrote to its standard output, without banners.

    Raises:
        BrokerError: The command failed or took too long; the message has its error output.
    """
    try:
        return _run(place, [str(place.scripts / "rabbitmqctl"), "--quiet", *arguments], timeout)
    except subprocess.TimeoutExpired:
        raise BrokerError(f"rabbitmqctl {arguments[0]} took over {timeout} seconds") from None
    except subprocess.CalledProcessError as error:
        output = f"{error.stderr}{error.stdout}".strip()
        raise BrokerError(f"rabbitmqctl {arguments[0]} failed: {output}") from None


def _run(place: Place, command: Sequence[str], timeout: float) -> str:
    return subprocess.run(  # noqa: S603 - a script that we looked up
        command,
        env=place.environment,
        cwd=place.directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=True,
    ).stdout
