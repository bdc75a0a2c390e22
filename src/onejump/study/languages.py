"""The languages whose text can be split into sentences."""

# Codes of ISO 639. Languages for which the splitter has no rules of their own share its default rules.
_CODES = (
    "af am ar ast az be bg bn br bs ca ceb co cs cy da de el en eo es et eu fa fi fr fy ga gd gl gu ha he "
    "hi hr ht hu hy id ig is it ja jv ka kk kn ko ku ky la lb lo lt lv mg mi mk ml mn mr ms mt my nb ne "
    "nl nn no oc or pa pl ps pt qu ro ru rw sa sd si sk sl so sq sr su sv sw ta te tg th tk tl tr tt ug "
    "uk ur uz vi wa xh yi yo zh zu"
)
LANGUAGES = _CODES.split()
