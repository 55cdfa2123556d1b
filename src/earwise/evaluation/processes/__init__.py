"""One evaluation in several processes, on one machine or on several that share a folder."""
