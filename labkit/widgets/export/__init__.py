"""Pages and pictures that outlive the kernel: one HTML file of a tool, its blocks alive, and the same as SVG or PNG.

`contents` collects what goes into such a file: blocks with their traits, the layout around them, and what follows from
a click. `page` writes it as HTML; in the browser `js/export.js` stands in for the kernel. `facts` says what the results
come from, `drawing` puts the pictures of a snapshot into one.
"""
