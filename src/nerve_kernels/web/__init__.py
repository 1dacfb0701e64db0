"""A page in the browser to play with the method: ``nerve-web``.

The command that starts it is in ``nerve_kernels.cli``; ``layout`` says where things stand, ``page`` what happens when
they are touched, in ``components`` of Gradio's; ``workbench`` and ``opened_image`` hold what is behind it and know
nothing of any page; ``limits`` and ``guard`` refuse what should not come in.
"""
