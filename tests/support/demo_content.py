"""Fills a new Zope with what the demonstration shows; run inside Zope. Argument: the key of the config path."""

import sys

import transaction
from OFS.DTMLMethod import addDTMLMethod
from Products.MaildropHost.MaildropHost import manage_addMaildropHost
from Products.PythonScripts.PythonScript import manage_addPythonScript

DTML = """\
<dtml-sendmail mailhost="MailHost">
To: <dtml-var to>
From: zope@example.org
Subject: Sent by a DTML Method

Hello from the tag dtml-sendmail.
</dtml-sendmail>The mail is in the spool.
"""

SCRIPT = """\
context.MailHost.send('Hello from a Script (Python).', mto=to, mfrom='zope@example.org', subject='Sent by a Script')
return 'The mail is in the spool.'
"""

app = globals()["app"]
manage_addMaildropHost(app, "MailHost", "Demonstration")
app.MailHost.setConfigPath(sys.argv[-1])
addDTMLMethod(app, "send_by_dtml", file=DTML)
manage_addPythonScript(app, "send_by_script")
app.send_by_script.ZPythonScript_edit("to='you@example.com'", SCRIPT)
for page in (app.send_by_dtml, app.send_by_script):    # whoever opens the page may send, as with proxy roles in the ZMI
    page._proxy_roles = ("Manager",)
transaction.commit()
