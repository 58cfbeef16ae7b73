"""The application: Ray Serve and vLLM behind the guarded edge."""
