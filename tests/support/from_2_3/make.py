"""What a site leaves behind that ran MaildropHost 2.3: this made ``Data.fs`` and ``spool`` beside it.

It is for Python 2.7, in an environment with the versions of that time, which Zope's sdist lists::

    $ pip install --no-deps -r Zope2-2.13.30/requirements.txt Zope2==2.13.30 Products.MaildropHost==2.3
    $ python make.py    # not as root

The site lay in SITE. That is a long path, so that a test can put one of the same length in its place.
"""

import os
import shutil
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SITE = "/srv/zope/" + "a-site-of-2.3-" * 14

ZOPE_CONF = """
%%define INSTANCE {site}
instancehome $INSTANCE
<eventlog>
  level info
  <logfile>
    path $INSTANCE/log/event.log
  </logfile>
</eventlog>
<zodb_db main>
  mount-point /
  <filestorage>
    path $INSTANCE/var/Data.fs
  </filestorage>
</zodb_db>
<zodb_db temporary>
  <temporarystorage>
    name temporary storage for sessioning
  </temporarystorage>
  mount-point /temp_folder
  container-class Products.TemporaryFolder.TemporaryContainer
</zodb_db>
<product-config maildrophost>
  config-path-1 $INSTANCE/maildrop/config
  config-path-2 $INSTANCE/newsletter/config
  config-path-3 $INSTANCE/removed/config
</product-config>
""".replace("%%", "%")

CONFIG = """
PYTHON="/usr/bin/python"
MAILDROP_HOME="{home}"
SMTP_HOST="relay-of-2.3.example.org"
SMTP_PORT=2323
MAILDROP_INTERVAL=77
DEBUG=0
DEBUG_RECEIVER="{receiver}"
MAILDROP_BATCH=0
MAILDROP_TLS=0
MAILDROP_LOGIN="login-of-2.3"
MAILDROP_PASSWORD="password-of-2.3"
WAIT_INTERVAL=0.0
ADD_MESSAGEID=0
SUPERVISED_DAEMON=0
"""

BY_DTML = """<dtml-sendmail mailhost="MailHost">
To: ann@example.org
From: zoe@example.org
Subject: DTML Method

Gr\xc3\xbc\xc3\x9fe
</dtml-sendmail>sent"""

BY_DTML_ARGUMENTS = (
    '<dtml-sendmail mailhost="MailHost" mailto="ann@example.org" mailfrom="zoe@example.org" subject="DTML arguments">\n'
    "Text\n"
    "</dtml-sendmail>sent"
)

BY_TEMPLATE = (
    '<p tal:define="sent python:'
    "here.MailHost.send('Text', 'ann@example.org', 'zoe@example.org', 'Page Template')"
    '">sent</p>'
)

SEND = "context.%s.send('Text', mto='ann@example.org', mfrom='zoe@example.org', subject='%s')\n"
SCRIPTS = {
    "by_script": SEND % ("MailHost", "Script") + "return 'sent'",
    "by_simple_send": "context.MailHost.simple_send('ann@example.org', 'zoe@example.org', 'simple_send', 'Text')\n"
    "return 'sent'",
    "by_newsletter": SEND % ("newsletter", "newsletter") + "return 'sent'",
    "by_both_and_fail": SEND % ("MailHost", "never") + SEND % ("newsletter", "at once") + "raise ValueError('no')",
    "paths": "return ' '.join([context[id].getConfigPath() for id in ('MailHost', 'newsletter')])",
}


def make_content(app):
    from OFS.DTMLMethod import addDTMLMethod
    from Products.MaildropHost import manage_addMaildropHost
    from Products.PageTemplates.ZopePageTemplate import manage_addPageTemplate
    from Products.PythonScripts.PythonScript import manage_addPythonScript

    manage_addMaildropHost(app, "MailHost", "Post f\xc3\xbcr alle")
    app.MailHost.setConfigPath("config-path-1")
    manage_addMaildropHost(app, "newsletter", "Newsletter")
    app.newsletter.manage_makeChanges("Newsletter", transactional=False, path_key="config-path-2")
    manage_addMaildropHost(app, "untouched")
    app.manage_addFolder("intranet")
    manage_addMaildropHost(app.intranet, "MailHost", "Intranet")
    app.intranet.MailHost.setConfigPath("config-path-3")
    addDTMLMethod(app, "by_dtml", file=BY_DTML)
    addDTMLMethod(app.intranet, "by_dtml_arguments", file=BY_DTML_ARGUMENTS)
    manage_addPageTemplate(app, "by_template", text=BY_TEMPLATE)
    for name in sorted(SCRIPTS):
        manage_addPythonScript(app, name)
        app[name].ZPythonScript_edit("", SCRIPTS[name])


def fill_spool(app):
    """Mails of all kinds, and the locks of a transaction that had not ended when the machine was switched off."""
    import transaction
    from Products.MaildropHost.MaildropHost import Email, TransactionalEmail

    app.MailHost.send("Text", "ann@example.org", "zoe@example.org", "one recipient")
    several = ['"Bob, the other" <bob@example.org>', "eve@example.org", "J\xc3\xb6 <joe@example.org>"]
    app.MailHost.send("Text", several, "Zoe <zoe@example.org>", "several recipients")
    app.MailHost.send("Gr\xc3\xbc\xc3\x9fe", "ann@example.org", "zoe@example.org", "non-ASCII text", charset="utf-8")
    app.MailHost.send(u"Gr\xfc\xdfe", u"ann@example.org", u"zoe@example.org", u"unicode", charset="utf-8")
    app.MailHost.send(".\n..dots\n.\n", "ann@example.org", "zoe@example.org", "dots", encode="quoted-printable")
    transaction.commit()
    spool = app.MailHost.spool
    content = "Subject: %s\nFrom: zoe@example.org\nTo: ann@example.org\n\n%s"
    Email("zoe@example.org", "ann@example.org", content % ("eight bits", "Gr\xfc\xdfe"), spool + "/7654321").send()
    Email("", "ann@example.org", content % ("null sender", "Text"), spool + "/7654322").send()
    TransactionalEmail("zoe@example.org", "ann@example.org", content % ("locked", "Text"), spool + "/7654323").send()


def main():
    for name, receiver in (("maildrop", ""), ("newsletter", ""), ("removed", "debug-receiver-of-2.3@example.org")):
        os.makedirs(os.path.join(SITE, name))
        with open(os.path.join(SITE, name, "config"), "w") as config:
            config.write(CONFIG.format(home=os.path.join(SITE, name), receiver=receiver))
    for name in ("log", "var", "Products"):
        os.makedirs(os.path.join(SITE, name))
    conf = os.path.join(SITE, "zope.conf")
    with open(conf, "w") as stream:
        stream.write(ZOPE_CONF.format(site=SITE))

    import Zope2

    Zope2.configure(conf)
    import transaction

    app = Zope2.app()
    make_content(app)
    transaction.commit()
    app._p_jar.db().pack(time.time())
    fill_spool(app)
    shutil.copy(os.path.join(SITE, "var", "Data.fs"), HERE)
    shutil.copytree(os.path.join(SITE, "maildrop", "spool"), os.path.join(HERE, "spool"))
    os._exit(0)    # as a machine that is switched off: nothing is rolled back


if __name__ == "__main__":
    main()
