"""The suites of `holdfast bench`, one a module with a function `run(session)`, and the session that runs them."""
