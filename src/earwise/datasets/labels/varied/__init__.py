"""Questions in many wordings and forms, with wordings that validation alone uses."""
