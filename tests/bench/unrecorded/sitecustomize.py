"""For tests/bench/recording.py alone: a service that does not record while a certain file exists.

The service has no such switch, and must not have one. Python imports this module at its start where
its folder is on PYTHONPATH, in every process of the service.
"""

import asyncio
import os

if FLAG := os.environ.get("LLAVA_MED_BENCH_UNRECORDED"):
    from serve import recorder

    class NoRecording:
        choices = ()
        prompt_tokens = 0

        @property
        def durable(self):
            return asyncio.sleep(0)

        def __enter__(self):
            return self

        def __exit__(self, *_error):
            return None

        def step(self, prompt_tokens):
            self.prompt_tokens = prompt_tokens

        async def answered(self):
            return None

    begin = recorder.Recorder.begin

    def begin_unless(self, plan):
        return NoRecording() if os.path.exists(FLAG) else begin(self, plan)  # noqa: PTH110

    recorder.Recorder.begin = begin_unless
