"""From runs to evidence: tables, intervals, verdicts, figures, pages."""
