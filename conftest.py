"""nbval compares all outputs; what the JVM writes to stderr depends on who captures it."""


def pytest_collectstart(collector):
    """Leave stderr out of the comparison, in notebooks only (nbval issue 168)."""
    if type(collector).__name__ == "IPyNbFile":
        collector.skip_compare += ("stderr",)
