#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# The metrics of all instances and relays, for the agent of Performance Co-Pilot that reads
# OpenMetrics, pmdaopenmetrics(1). It runs this file, and drops the output of a program that fails.
# So an instance that does not answer (exit code 1) is no failure here: its fm_consumer_up is 0.
fm-consumer metrics || [ $? -eq 1 ]
