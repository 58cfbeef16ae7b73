"""The review console in a real browser, on the real review application and a real store."""
