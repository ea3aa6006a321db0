// Attention of a few tokens, in float32.
#pragma once

#include "../kernels.hpp"

namespace gemlens {
inline namespace GEMLENS_ISA {

void look(const Look& at);

}  // namespace GEMLENS_ISA
}  // namespace gemlens
