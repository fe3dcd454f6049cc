"""Verdicts as people and machines read them: a terminal table, Markdown, JUnit, and the trend of a case."""
