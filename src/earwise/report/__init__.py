"""HTML reports about evaluation runs, training runs and ablations."""

from earwise.report.evaluation import RunSource as RunSource
from earwise.report.evaluation import write_report as write_report
