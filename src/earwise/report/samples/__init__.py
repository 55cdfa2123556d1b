"""Every sample of a report's runs: rows for the page's list, their clips, and the list's HTML."""
