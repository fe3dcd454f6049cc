"""One file an output: HTML, Markdown, CSV, LaTeX, terminals, and JUnit for the gate."""
