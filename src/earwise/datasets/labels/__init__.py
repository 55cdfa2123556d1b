"""Questions from labelled clips: about one clip, two clips, and scenes composed of several."""
