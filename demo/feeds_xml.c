#include "feeds_xml.h"

#include <libxml/parser.h>
#include <string.h>

xmlDocPtr parse_feed(const char *text, int length) {
    xmlDocPtr feed = xmlReadMemory(text, length, "feed.xml", NULL,
                                   XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING);
    if (feed && !xmlDocGetRootElement(feed)) {
        xmlFreeDoc(feed);
        return NULL;
    }
    return feed;
}

const char *feed_title(xmlDocPtr feed) {
    for (xmlNodePtr node = xmlDocGetRootElement(feed)->children; node; node = node->next)
        if (node->type == XML_ELEMENT_NODE && !strcmp((const char *)node->name, "title"))
            return node->children ? (const char *)node->children->content : "";
    return NULL;
}
