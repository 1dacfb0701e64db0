"""A page in the browser to play with the method: ``nerve-web``.

``command`` starts it, ``page`` lays it out, ``workbench`` and ``opened_image`` hold what is behind it and know
nothing of any page, ``limits`` and ``guard`` refuse what should not come in.
"""
