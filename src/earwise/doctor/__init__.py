"""Checks of the machine and of a model; what `earwise doctor` prints."""

from earwise.doctor.examination import examine as examine
