"""The suites of `holdfast bench`, one a module with a function `run(session)`."""
