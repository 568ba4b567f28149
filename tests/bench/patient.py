"""Retention as a production has it: `python -m tests.bench.patient retention`.

On a developer's machine it sends orders again after seconds and sweeps at once, for whoever waits for a single case. With
thousands of them that is another load than the one that is measured.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import timedelta

from deploy import serve
from services.retention import app
from services.retention.case import Timing
from shared.policy import policy

if __name__ == "__main__":
    app.service = app.make_service(timing=replace(Timing(), lapse=timedelta(days=policy().confirmation_days)))
    sys.exit(serve.main(sys.argv[1:]))
