"""Rows as other programs write them, converted to rows of earwise's own manifest format.

`recognise.py` names the format of a row by its keys, `convert.py` converts it. The formats themselves are in `chat.py`
(conversations) and `flat.py` (a question and a reply); `messages.py` takes conversations apart and puts clips in the
place of their tags; `sound_names.py` lists the keys and tags that mean sound. All functions are pure: a dictionary goes
in, a dictionary comes out, and a wrong row raises DataError.
"""
