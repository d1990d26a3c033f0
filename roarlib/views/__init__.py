"""Looking at a study: figures, widgets and the report; nothing here computes a result.

Read in this order: plots (figures of tables), naming (names of their lines), sheets (pictures of images), show (what
notebooks put on the page), view (what widgets share), curves, across, images, compare, watch (the widgets), page and
report (one HTML file), methods and latex (a paper).
"""
