"""A comparison as JUnit XML, which CI systems show as tests."""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement, indent, tostring

from niffbench.gate.findings import FAILING, Comparison, Finding
from niffbench.report.text import clean
from niffbench.report.verdicts import LONGEST_HEADLINE, change, interval, line, remarks, value


def write(comparison: Comparison) -> bytes:
    """One test case per finding: failing verdicts are failures, what could not be judged is skipped.

    So are a changed environment that was not acknowledged, and each step that fails.
    """
    findings = comparison.findings
    steps, environment = comparison.open_steps, comparison.environment
    changed = environment in ("failing", "open")
    totals = {
        "tests": str(len(findings) + len(steps) + changed),
        "failures": str(len(comparison.failing) + len(steps) + (environment == "failing")),
        "errors": "0",
        "skipped": str(sum(map(_skipped, findings)) + (environment == "open")),
    }
    root = Element("testsuites", totals)
    suite = SubElement(root, "testsuite", {"name": f"niffbench {clean(comparison.head.suite)}", **totals})
    for finding in findings:
        _case(suite, finding)
    for step in steps:
        name = f"{clean(step.label)} {step.quantity} step"
        case = SubElement(suite, "testcase", {"classname": clean(step.problem), "name": name, "time": "0"})
        SubElement(case, "failure", {"type": "step", "message": line(step)})
    if changed:
        case = SubElement(suite, "testcase", {"classname": "niffbench", "name": "environment", "time": "0"})
        message = {"message": clean(comparison.headline, LONGEST_HEADLINE)}
        if environment == "failing":
            SubElement(case, "failure", {"type": "environment", **message})
        else:
            SubElement(case, "skipped", message)
    SubElement(suite, "system-out").text = "\n".join(
        [clean(comparison.headline, LONGEST_HEADLINE), *remarks(comparison)]
    )
    indent(root)
    return bytes(tostring(root, encoding="utf-8", xml_declaration=True))


def failure(message: str, exit_code: int) -> bytes:
    """Why there is no comparison: one test that could not be made."""
    totals = {"tests": "1", "failures": "0", "errors": "1", "skipped": "0"}
    root = Element("testsuites", totals)
    suite = SubElement(root, "testsuite", {"name": "niffbench", **totals})
    case = SubElement(suite, "testcase", {"classname": "niffbench", "name": "comparison", "time": "0"})
    why = clean(message, 1000)
    SubElement(case, "error", {"type": f"exit code {exit_code}", "message": why}).text = why
    indent(root)
    return bytes(tostring(root, encoding="utf-8", xml_declaration=True))


def _skipped(finding: Finding) -> bool:
    unjudged = finding.verdict in ("inconclusive", "incomparable", "uncovered") or finding.blind
    return unjudged and finding.verdict not in FAILING


def _case(suite: Element, finding: Finding) -> None:
    name = f"{clean(finding.label)} {finding.quantity}"
    case = SubElement(suite, "testcase", {"classname": clean(finding.problem), "name": name, "time": "0"})
    said = f"{finding.verdict}: {clean(finding.reason)}"
    if finding.verdict in FAILING:
        SubElement(case, "failure", {"type": finding.verdict, "message": said}).text = _figures(finding)
    elif _skipped(finding):
        SubElement(case, "skipped", {"message": said})
    else:
        SubElement(case, "system-out").text = f"{said}. {_figures(finding)}"


def _figures(finding: Finding) -> str:
    pair = f"{value(finding, finding.base)} in BASE, {value(finding, finding.head)} in HEAD"
    return " ".join(part for part in (pair, change(finding), interval(finding)) if part)
