"""The report of a comparison: one self-contained HTML page, drawn from the trial table alone."""

from __future__ import annotations

from metaopt_hpo.report.page import REPORT_FILE, ReportError, render, report_from_folder, write_report

__all__ = ["REPORT_FILE", "ReportError", "render", "report_from_folder", "write_report"]
