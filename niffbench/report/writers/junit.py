"""A comparison as JUnit XML, which CI systems show as tests."""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement, indent, tostring

from niffbench.gate.findings import FAILING, Comparison, Finding
from niffbench.report.text import clean
from niffbench.report.verdicts import change, interval, remarks, value


def write(comparison: Comparison) -> bytes:
    """One test case per finding: failing verdicts are failures, what could not be judged is skipped."""
    findings = comparison.findings
    totals = {
        "tests": str(len(findings)),
        "failures": str(len(comparison.failing)),
        "errors": "0",
        "skipped": str(sum(map(_skipped, findings))),
    }
    root = Element("testsuites", totals)
    suite = SubElement(root, "testsuite", {"name": f"niffbench {clean(comparison.head.suite)}", **totals})
    for finding in findings:
        _case(suite, finding)
    SubElement(suite, "system-out").text = "\n".join([comparison.headline, *remarks(comparison)])
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
    return finding.verdict in ("inconclusive", "incomparable")


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
