"""Looking at a server that runs: `moshi-ctl metrics` and `moshi-ctl warmup`."""
