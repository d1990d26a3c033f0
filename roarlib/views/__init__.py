"""Looking at a study: figures, widgets and the report; nothing here computes a result.

Read in this order: plots (figures of tables), sheets (pictures of images), view (what widgets share), svg (curves that
can be pointed at), curves, images, compare, watch (the widgets), report and page (one HTML file).
"""
