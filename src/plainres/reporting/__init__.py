"""Reports: families of runs, statistics, figures, evidence, the page."""
